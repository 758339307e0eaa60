// A plugin host that nobody here wrote: Debian's python3, which computes in a thread, and extension modules that it has not imported yet.
// A patch for a module itself (stripped: only its init function is to be found) and for a library that comes along with another one
// is loaded first. The import runs into the new code with no tool around: the C accelerator of json is kept out, so that json
// does in Python what it would do there, and sqlite says another version. Then the patch is disabled, and all is as built.

//@ needs /usr/bin/python3 /usr/lib/x86_64-linux-gnu/libsqlite3.so.0
//@ file host.py
import importlib, sys, threading

turns = 0

def compute():
    global turns
    while True:
        turns += sum(range(1000)) == 499500

def libversion():
    """What the library of sqlite says itself, now."""
    ctypes = importlib.import_module("ctypes")
    function = ctypes.CDLL("libsqlite3.so.0").sqlite3_libversion
    function.restype = ctypes.c_char_p
    return function().decode()

def beat():
    """Waits until the thread has computed on."""
    before = turns
    while turns == before:
        pass

threading.Thread(target=compute, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except ImportError as error:
        print("ImportError:", error, flush=True)
    beat()

//@ file fix.c
#include <ugraft/livepatch.h>
/* The interpreter's own, which the executable exports. */
extern void *PyExc_ImportError;
void PyErr_SetString(void *type, const char *message);

static void *keep_out(void)
{
	PyErr_SetString(PyExc_ImportError, "the C accelerator is not to be used");
	return 0;
}
static const char *new_version(void) { return "3.99.9"; }

static struct klp_func json_funcs[] = { { .old_name = "PyInit__json", .new_func = keep_out }, {} };
static struct klp_func sqlite_funcs[] = { { .old_name = "sqlite3_libversion", .new_func = new_version }, {} };
static struct klp_object objs[] = {
	{ .name = "_json" SUFFIX, .funcs = json_funcs },
	{ .name = "libsqlite3.so.0", .funcs = sqlite_funcs },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I"$SDK" -DSUFFIX="\"$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')\"" fix.c -o fix.o

//@ start python: /usr/bin/python3 -u host.py
//@ expect ready
//@ $ ugraft check fix.o --pid $PID
//>  object [..]
//>  _json.[..].so  PyInit__json                 its object is not loaded
//>  libsqlite3.so.0 [..] sqlite3_libversion           its object is not loaded
//> patch 'fix' can be loaded into process $python
//@ $ ugraft load fix.o --pid $PID --timeout 60s
//> patch 'fix': enabled (2 threads, longest pause [..], [..] in all)
//@ say importlib.import_module('_json')
//@ expect ImportError: the C accelerator is not to be used
//@ say importlib.import_module('json.decoder').c_scanstring
//@ expect None
//@ say importlib.import_module('json').loads('[1, "two"]')
//@ expect [1, 'two']
//@ say importlib.import_module('sqlite3').sqlite_version
//@ expect 3.99.9
//@ say libversion()
//@ expect 3.99.9
//@ $ ugraft status --pid $PID
//> process $python (python3)
//>  patch [..]
//>  fix             enabled  _json.[..].so  PyInit__json
//>                           libsqlite3.so.0 [..] sqlite3_libversion
//> no patch is in transition
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'fix'
//> livepatch: 'fix': initializing patching transition
//> livepatch: 'fix': starting patching transition
//> livepatch: 'fix': completing patching transition
//> livepatch: 'fix': patching complete
//> livepatch: applying patch 'fix' to loading module '_json.[..].so'
//> livepatch: applying patch 'fix' to loading module 'libsqlite3.so.0'

// Off: the next import has the accelerator again, and the library says what it is.
//@ $ ugraft disable fix --pid $PID --timeout 60s
//> patch 'fix': disabled (2 threads, longest pause [..], [..] in all)
//@ say importlib.reload(importlib.import_module('json.decoder')).c_scanstring
//@ expect <built-in function scanstring>
//@ say libversion() == importlib.import_module('sqlite3').sqlite_version, libversion()[:2]
//@ expect (False, '3.')

// On again, over libraries that are in use by now.
//@ $ ugraft enable fix --pid $PID --timeout 60s
//> patch 'fix': enabled (2 threads, longest pause [..], [..] in all)
//@ say libversion()
//@ expect 3.99.9
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet && ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say libversion()[:2], libversion() == '3.99.9'
//@ expect ('3.', False)
//@ alive
//@ clean
//@ close
