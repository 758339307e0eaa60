// The life of a patch: loaded and enabled, disabled, enabled again, disabled and unloaded; what the tool tells at each
// point, in tables and in JSON; and that afterwards the process is what it was before (P4).

//@ file target.c
#include "target.h"
PATCHABLE int price(int count) { return count * 12; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("price of %s: %d", c, price(atoi(c)));
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int price(int count) { return count * 10; }
static struct klp_func funcs[] = { { .old_name = "price", .new_func = price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
KLP_VERSION("1.2");
KLP_DESCRIPTION("Ten of these cost a hundred");
KLP_LICENSE("MIT");

//@ start target
//@ expect ready
//@ say 3
//@ expect price of 3: 36
//@ snapshot

// Nothing is patched yet, and the tool says so.
//@ $ ugraft status --pid $PID
//> process $target (target): not patched
//= 3
//@ $ ugraft list --pid $PID
//! ugraft: process $target is not patched
//= 3
//@ $ ugraft log --pid $PID
//! ugraft: process $target is not patched
//= 3

// A file can be looked at without a process, and tried on one without touching it.
//@ $ ugraft info fix.o
//> name:        fix
//> version:     1.2
//> description: Ten of these cost a hundred
//> license:     MIT
//> replace:     no
//> size:        12288 bytes
//> object:      (executable)
//>   price -> price
//@ $ ugraft info fix.o --json
//> {
//>   "command": "info",
//>   "exit_code": 0,
//>   "imports": [],
//>   "ok": true,
//>   "patch": {
//>     "depends": [],
//>     "description": "Ten of these cost a hundred",
//>     "license": "MIT",
//>     "name": "fix",
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
//>             "new_func": "price",
//>             "old_name": "price",
//>             "old_sympos": 0
//>           }
//>         ],
//>         "name": null
//>       }
//>     ],
//>     "replace": false,
//>     "states": [],
//>     "version": "1.2"
//>   },
//>   "schema": "ugraft/1",
//>   "size": 12288
//> }
//@ $ ugraft check fix.o --pid $PID
//>  object        function  address         verdict
//>  (executable)  price     [..]  can be redirected by a jump
//> patch 'fix' can be loaded into process $target
//@ $ ugraft check fix.o --pid $PID --json
//> {
//>   "check": {
//>     "funcs": [
//>       {
//>         "addr": [..],
//>         "clones": [],
//>         "cold": [],
//>         "name": "price",
//>         "object": null,
//>         "ok": true,
//>         "verdict": "can be redirected by a jump"
//>       }
//>     ],
//>     "notes": [],
//>     "ok": true,
//>     "patch": "fix",
//>     "pid": $target,
//>     "problems": []
//>   },
//>   "command": "check",
//>   "exit_code": 0,
//>   "ok": true,
//>   "schema": "ugraft/1"
//> }
//@ unchanged

//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ alive
//@ say 3
//@ expect price of 3: 30
//@ $ ugraft list --pid $PID
//>  patch  version  state    objects       functions
//>  fix    1.2      enabled  (executable)  price
//@ $ ugraft status --pid $PID
//> process $target (target)
//>  patch  version  state    objects       functions
//>  fix    1.2      enabled  (executable)  price
//> no patch is in transition
//@ $ ugraft status --pid $PID --json
//> {
//>   "command": "status",
//>   "exit_code": 0,
//>   "ok": true,
//>   "schema": "ugraft/1",
//>   "status": {
//>     "comm": "target",
//>     "hook": null,
//>     "mapped_bytes": [..],
//>     "patches": [
//>       {
//>         "description": "Ten of these cost a hundred",
//>         "forced": false,
//>         "id": 1,
//>         "life": "enabled",
//>         "may_unload": false,
//>         "name": "fix",
//>         "objects": [
//>           {
//>             "funcs": [
//>               {
//>                 "name": "price",
//>                 "nop": false,
//>                 "sympos": 1
//>               }
//>             ],
//>             "loaded": true,
//>             "name": null,
//>             "patched": true
//>           }
//>         ],
//>         "replace": false,
//>         "replaced_by": null,
//>         "transition": false,
//>         "version": "1.2"
//>       }
//>     ],
//>     "pid": $target,
//>     "tool": null,
//>     "tool_at_work": false,
//>     "transition": null,
//>     "written_by": "ugraft [..]"
//>   }
//> }

//@ $ ugraft disable fix --pid $PID
//> patch 'fix': disabled (1 thread, longest pause [..], [..] in all)
//@ say 3
//@ expect price of 3: 36
//@ $ ugraft list --pid $PID
//>  patch  version  state     objects       functions
//>  fix    1.2      disabled  (executable)  price
//@ $ ugraft enable fix --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say 3
//@ expect price of 3: 30

// The same in JSON, and the log of it all.
//@ $ ugraft disable fix --pid $PID --json
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
//>     "patch": "fix",
//>     "replaced": []
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
//>       "description": "Ten of these cost a hundred",
//>       "forced": false,
//>       "id": 1,
//>       "life": "disabled",
//>       "may_unload": true,
//>       "name": "fix",
//>       "objects": [
//>         {
//>           "funcs": [
//>             {
//>               "name": "price",
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
//>       "replaced_by": null,
//>       "transition": false,
//>       "version": "1.2"
//>     }
//>   ],
//>   "pid": $target,
//>   "schema": "ugraft/1"
//> }
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete
//> [..] livepatch: 'fix': initializing unpatching transition
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': completing unpatching transition
//> [..] livepatch: 'fix': unpatching complete
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete
//> [..] livepatch: 'fix': initializing unpatching transition
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': completing unpatching transition
//> [..] livepatch: 'fix': unpatching complete
//@ $ ugraft unload fix --pid $PID
//> patch 'fix': unloaded (1 thread, longest pause [..], [..] in all)
//@ say 3
//@ expect price of 3: 36
//@ alive
//@ clean
//@ unchanged
//@ $ ugraft status --pid $PID
//> process $target (target): not patched
//= 3

// Loaded without being enabled, the code waits.
//@ $ ugraft load fix.o --pid $PID --disabled
//> patch 'fix': loaded, disabled
//@ say 3
//@ expect price of 3: 36
//@ $ ugraft enable fix --pid $PID --quiet
//@ say 3
//@ expect price of 3: 30
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
