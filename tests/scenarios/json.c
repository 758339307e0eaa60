// Every command's JSON: one object on standard output and nothing else, also for failures, with the schema's name in it. What a
// script relies on is written here; a field that changes its meaning or goes away takes a new number of the schema.

//@ file target.c
#include "target.h"
PATCHABLE int f(int n) { return n + 1; }
PATCHABLE int g(int n) { return n + 1; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("f %d g %d", f(0), g(0));
	return 0;
}

//@ file base.c
#include <ugraft/livepatch.h>
static int f(int n) { return n + 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
KLP_VERSION("1");

//@ file top.c
#include <ugraft/livepatch.h>
static int f(int n) { return n + 3; }
static int g(int n) { return n + 3; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, { .old_name = "g", .new_func = g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
KLP_VERSION("2");

//@ start target
//@ expect ready
//@ $ ugraft status --pid $PID --json
//> {
//>   "command": "status",
//>   "exit_code": 3,
//>   "ok": false,
//>   "schema": "ugraft/1",
//>   "status": {
//>     "comm": "target",
//>     "hook": null,
//>     "mapped_bytes": [..],
//>     "patches": [],
//>     "pid": $target,
//>     "tool": null,
//>     "tool_at_work": false,
//>     "transition": null,
//>     "written_by": ""
//>   }
//> }
//= 3
//@ $ ugraft load base.o --pid $PID --json
//> {
//>   "command": "load",
//>   "exit_code": 0,
//>   "ok": true,
//>   "report": {
//>     "already": null,
//>     "cost": {
//>       "elapsed_ns": [..],
//>       "longest_pause_ns": [..],
//>       "looks": [..],
//>       "stopped_ns": [..],
//>       "stops": [..],
//>       "threads": 1
//>     },
//>     "forced": [],
//>     "life": "enabled",
//>     "notes": [],
//>     "patch": "base",
//>     "replaced": []
//>   },
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft enable base --pid $PID --json
//> {
//>   "command": "enable",
//>   "exit_code": 0,
//>   "ok": true,
//>   "report": {
//>     "already": "patch 'base' is already enabled",
//>     "cost": {
//>       "elapsed_ns": [..],
//>       "longest_pause_ns": [..],
//>       "looks": [..],
//>       "stopped_ns": [..],
//>       "stops": [..],
//>       "threads": 0
//>     },
//>     "forced": [],
//>     "life": "enabled",
//>     "notes": [],
//>     "patch": "base",
//>     "replaced": []
//>   },
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft load top.o --pid $PID --json
//> {
//>   "command": "load",
//>   "exit_code": 0,
//>   "ok": true,
//>   "report": {
//>     "already": null,
//>     "cost": {
//>       "elapsed_ns": [..],
//>       "longest_pause_ns": [..],
//>       "looks": [..],
//>       "stopped_ns": [..],
//>       "stops": [..],
//>       "threads": 1
//>     },
//>     "forced": [],
//>     "life": "enabled",
//>     "notes": [],
//>     "patch": "top",
//>     "replaced": [
//>       "base"
//>     ]
//>   },
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft list --pid $PID --json
//> {
//>   "command": "list",
//>   "exit_code": 0,
//>   "ok": true,
//>   "patches": [
//>     {
//>       "description": "",
//>       "forced": false,
//>       "id": 1,
//>       "life": "replaced",
//>       "may_unload": true,
//>       "name": "base",
//>       "objects": [
//>         {
//>           "funcs": [
//>             {
//>               "name": "f",
//>               "nop": false,
//>               "sympos": 1
//>             }
//>           ],
//>           "loaded": true,
//>           "name": null,
//>           "patched": false
//>         }
//>       ],
//>       "replace": false,
//>       "replaced_by": "top",
//>       "transition": false,
//>       "version": "1"
//>     },
//>     {
//>       "description": "",
//>       "forced": false,
//>       "id": 2,
//>       "life": "enabled",
//>       "may_unload": false,
//>       "name": "top",
//>       "objects": [
//>         {
//>           "funcs": [
//>             {
//>               "name": "f",
//>               "nop": false,
//>               "sympos": 1
//>             },
//>             {
//>               "name": "g",
//>               "nop": false,
//>               "sympos": 1
//>             }
//>           ],
//>           "loaded": true,
//>           "name": null,
//>           "patched": true
//>         }
//>       ],
//>       "replace": true,
//>       "replaced_by": null,
//>       "transition": false,
//>       "version": "2"
//>     }
//>   ],
//>   "pid": $target,
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft log --pid $PID --json
//> {
//>   "command": "log",
//>   "exit_code": 0,
//>   "messages": [
//>     {
//>       "level": "notice",
//>       "text": "livepatch: enabling patch 'base'",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "debug",
//>       "text": "livepatch: 'base': initializing patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "notice",
//>       "text": "livepatch: 'base': starting patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "debug",
//>       "text": "livepatch: 'base': completing patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "notice",
//>       "text": "livepatch: 'base': patching complete",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "notice",
//>       "text": "livepatch: enabling patch 'top'",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "debug",
//>       "text": "livepatch: 'top': initializing patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "notice",
//>       "text": "livepatch: 'top': starting patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "debug",
//>       "text": "livepatch: 'top': completing patching transition",
//>       "time_ns": [..]
//>     },
//>     {
//>       "level": "notice",
//>       "text": "livepatch: 'top': patching complete",
//>       "time_ns": [..]
//>     }
//>   ],
//>   "ok": true,
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft enable base --pid $PID --json
//> {
//>   "command": "enable",
//>   "error": {
//>     "kind": "refused",
//>     "message": "patch 'base' was replaced by 'top' and cannot be used again: unload it and load it anew"
//>   },
//>   "exit_code": 1,
//>   "ok": false,
//>   "schema": "ugraft/1"
//> }
//= 1
//@ $ ugraft unload nothing --pid $PID --json
//> {
//>   "command": "unload",
//>   "error": {
//>     "kind": "no_such_patch",
//>     "message": "no patch 'nothing' is loaded in this target: see the list of patches for the names there are"
//>   },
//>   "exit_code": 4,
//>   "ok": false,
//>   "schema": "ugraft/1"
//> }
//= 4
//@ $ ugraft load nowhere.o --pid $PID --json
//> {
//>   "command": "load",
//>   "error": {
//>     "kind": "bad_patch_file",
//>     "message": "cannot read nowhere.o: No such file or directory (os error 2)"
//>   },
//>   "exit_code": 8,
//>   "ok": false,
//>   "schema": "ugraft/1"
//> }
//= 8
//@ $ ugraft info top.o --json
//> {
//>   "command": "info",
//>   "exit_code": 0,
//>   "imports": [],
//>   "ok": true,
//>   "patch": {
//>     "depends": [],
//>     "description": null,
//>     "license": null,
//>     "name": "top",
//>     "objects": [
//>       {
//>         "build_id": null,
//>         "callbacks": {
//>           "post_patch": null,
//>           "post_unpatch": null,
//>           "pre_patch": null,
//>           "pre_unpatch": null
//>         },
//>         "funcs": [
//>           {
//>             "new_func": "f",
//>             "old_name": "f",
//>             "old_sympos": 0
//>           },
//>           {
//>             "new_func": "g",
//>             "old_name": "g",
//>             "old_sympos": 0
//>           }
//>         ],
//>         "name": null
//>       }
//>     ],
//>     "replace": true,
//>     "states": [],
//>     "version": "2"
//>   },
//>   "schema": "ugraft/1",
//>   "size": 12288
//> }
//@ $ ugraft disable top --pid $PID --json
//> {
//>   "command": "disable",
//>   "exit_code": 0,
//>   "ok": true,
//>   "report": {
//>     "already": null,
//>     "cost": {
//>       "elapsed_ns": [..],
//>       "longest_pause_ns": [..],
//>       "looks": [..],
//>       "stopped_ns": [..],
//>       "stops": [..],
//>       "threads": 1
//>     },
//>     "forced": [],
//>     "life": "disabled",
//>     "notes": [],
//>     "patch": "top",
//>     "replaced": []
//>   },
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft unload top --pid $PID --json
//> {
//>   "command": "unload",
//>   "exit_code": 0,
//>   "ok": true,
//>   "report": {
//>     "already": null,
//>     "cost": {
//>       "elapsed_ns": [..],
//>       "longest_pause_ns": [..],
//>       "looks": [..],
//>       "stopped_ns": [..],
//>       "stops": [..],
//>       "threads": 1
//>     },
//>     "forced": [],
//>     "life": null,
//>     "notes": [],
//>     "patch": "top",
//>     "replaced": []
//>   },
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft unload base --pid $PID --quiet
//@ clean
