// After a patch that waits for a library, the program forbids itself system calls, on pain of death, that its own dlopen does not
// make but the patching of a library takes. The library is refused, and nothing worse happens; others are loaded as ever.

//@ file libplug.c
int answer(int x) { __asm__ volatile(""); return x + 1; }
//@ build cc -O2 -g -shared -fPIC libplug.c -o libplug.so && cp libplug.so libother.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
static void forbid(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettid, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	tell("forbidden %d", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "forbid")) {
			forbid();
			continue;
		}
		void *lib = dlopen(c, RTLD_NOW);
		if (!lib) {
			tell("%s", dlerror());
			continue;
		}
		tell("answer %d", ((int (*)(int))dlsym(lib, "answer"))(1));
		dlclose(lib);
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + 100; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ./libplug.so
//@ expect answer 101
//@ say forbid
//@ expect forbidden 0
//@ say ./libplug.so
//@ expect ./libplug.so: patch 'fix' cannot be applied to it: a seccomp filter that could kill the process for what that takes was set since, or /proc is not there to tell; load the library before
//@ say ./libother.so
//@ expect answer 2
//@ $ ugraft log --pid $PID | tail -2 | sed 's/[^ ]* //'
//> warning: livepatch: failed to initialize patch 'fix' for module 'libplug.so' (-1)
//> warning: livepatch: patch 'fix' failed for module 'libplug.so', refusing to load module 'libplug.so'
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
//@ say ./libplug.so
//@ expect answer 2
