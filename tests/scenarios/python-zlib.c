// A program nobody here wrote: Debian's python3, computing checksums with zlib in several threads and asking zlib's version.
// Two functions of the library are patched while it computes; one of them begins with a jump through the PLT, the other with
// an instruction that reads relative to its own place. Every sum that the program sees is the old or the new one, never a mix,
// and after the unloading the old one again.

//@ needs /usr/bin/python3 /usr/lib/x86_64-linux-gnu/libz.so.1
//@ file loop.py
import ctypes, sys, threading, zlib

OLD = zlib.crc32(b"x" * 100)
NEW = OLD ^ 0xffffffff
libz = ctypes.CDLL("libz.so.1")
libz.zlibVersion.restype = ctypes.c_char_p
seen = {}

def compute(number):
    data = b"x" * 100
    big = b"y" * 20000
    while True:
        value = zlib.crc32(data)
        if value not in (OLD, NEW):
            print("wrong sum", value, flush=True)
        zlib.crc32(big)   # large inputs run without the interpreter's lock
        seen[number] = (value == NEW)

for number in range(4):
    threading.Thread(target=compute, args=(number,), daemon=True).start()
while len(seen) < 4:
    pass
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "version":
        print("version", libz.zlibVersion().decode(), flush=True)
    else:
        # Until every thread has computed anew and all agree with what is asked for.
        wanted = word == "new"
        while True:
            seen.clear()
            while len(seen) < 4:
                pass
            if all(value == wanted for value in seen.values()):
                break
        print("all", word, flush=True)

//@ file fix.c
#include <stddef.h>
#include <ugraft/livepatch.h>
/* zlib's own, found as its loader would find it. */
unsigned long crc32_z(unsigned long crc, const unsigned char *buf, size_t len);
static unsigned long new_crc32(unsigned long crc, const unsigned char *buf, unsigned len)
{
	return crc32_z(crc, buf, len) ^ 0xffffffff;
}
static const char *new_version(void) { return "1.2.13-patched"; }
static struct klp_func funcs[] = {
	{ .old_name = "crc32", .new_func = new_crc32 },
	{ .old_name = "zlibVersion", .new_func = new_version },
	{}
};
static struct klp_object objs[] = { { .name = "libz.so.1", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start python: /usr/bin/python3 -u loop.py
//@ expect ready
//@ say version
//@ expect version [=version].[..]
//@ say old
//@ expect all old
//@ $ ugraft check fix.o --pid $PID
//>  object     function     address         verdict
//>  libz.so.1  crc32        [..]  can be redirected by a jump
//>  libz.so.1  zlibVersion  [..]  can be redirected by a jump
//> patch 'fix' can be loaded into process $python
//@ $ ugraft load fix.o --pid $PID --timeout 60s
//> patch 'fix': enabled (5 threads, longest pause [..], [..] in all)
//@ say version
//@ expect version 1.2.13-patched
//@ say new
//@ expect all new
//@ alive
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ say old
//@ expect all old
//@ say version
//@ expect version $version.[..]
//@ $ ugraft enable fix --pid $PID --timeout 60s --quiet
//@ say new
//@ expect all new
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say old
//@ expect all old
//@ never wrong sum [..]
//@ alive
//@ clean
//@ close
