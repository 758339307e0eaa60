// A target in a container: namespaces of its own for mounts, process ids, network and the rest, and a root directory that
// is not ours. Its functions and libraries are those of its files, also where ours has others under the same paths.

//@ needs unshare chroot root
//@ file libshop.c
static int discount(int weight) { return weight > 5; } /* the library outside has this elsewhere */
int shipping(int weight) { return weight * 3 - discount(weight); }
//@ build cc -O1 -fno-inline -fPIC -shared -Wl,-soname,libshop.so libshop.c -o inside.so
//@ file elsewhere.c
int shipping(int weight) { return -weight; }
//@ build cc -O1 -fPIC -shared -Wl,-soname,libshop.so elsewhere.c -o libshop.so

//@ file target.c
#include "target.h"
int shipping(int weight);
PATCHABLE int bill(int weight) { return shipping(weight) + 1; }
int main(void)
{
	tell("process %d", getpid());
	for (const char *c; (c = command());)
		tell("bill %d", bill(atoi(c)));
	return 0;
}
//@ build cc -O2 -g -I$SUPPORT target.c ./libshop.so "-Wl,-rpath,$PWD" -o target

//@ file fix.c
#include <ugraft/livepatch.h>
int shipping(int weight);
static int new_bill(int weight) { return shipping(weight) + 1000; }
static int new_discount(int weight) { return weight; }
static struct klp_func exe[] = { { .old_name = "bill", .new_func = new_bill }, {} };
static struct klp_func lib[] = { { .old_name = "discount", .new_func = new_discount }, {} };
static struct klp_object objs[] = { { .funcs = exe }, { .name = "libshop.so", .funcs = lib }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

// Its root: the program, the libraries it needs, and under the path of the library outside the one it is to use.
//@ $ for f in target $(ldd target | grep -o '/[^ ]*'); do mkdir -p "root$(dirname $f)" && cp "$f" "root$f"; done
//@ $ cp inside.so "root$PWD/libshop.so" && cp target root/target && mkdir -p root/proc
//@ start keeper: unshare --mount --pid --net --ipc --uts --fork --kill-child chroot root /target
//@ expect process 1
//@ say 10
//@ expect bill 30
//@ $ echo child $(cat /proc/$PID/task/$PID/children)
//> child [=child]
//@ adopt target child
//@ snapshot
//@ $ ugraft load fix.o --pid $target
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ at keeper say 10
//@ at keeper expect bill 1020
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state    objects       functions
//>  fix             enabled  (executable)  bill
//>                           libshop.so    discount
//> no patch is in transition
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at keeper say 10
//@ at keeper expect bill 30
//@ clean
//@ unchanged
//@ at keeper close
//@ at keeper wait
