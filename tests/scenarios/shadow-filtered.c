// Memory for shadow variables under a seccomp filter: where it may kill the process for what more memory takes, nothing is mapped, and
// the load says so; where it lets that fail, or be, it is tried. klp_shadow_alloc gives NULL when there is no more.

//@ needs root
//@ file target.c
#include "target.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
PATCHABLE long attach(long count) { (void)count; return -1; }
static void filter(unsigned action)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, action),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		abort();
}
int main(int count, char **arguments)
{
	const char *what = count > 1 ? arguments[1] : "";
	filter(!strcmp(what, "kill") ? SECCOMP_RET_KILL_PROCESS : !strcmp(what, "fail") ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_ALLOW);
	tell("ready");
	while (command())
		tell("%ld attached", attach(20000));
	return 0;
}

//@ file fields.c
#include <ugraft/livepatch.h>
#include <ugraft/shadow.h>
static long attach(long count)
{
	long n = 0;
	while (n < count && klp_shadow_alloc((void *)(8 * n + 8), 1, 32, GFP_KERNEL, 0, 0))
		n++;
	return n;
}
static struct klp_func funcs[] = { { .old_name = "attach", .new_func = attach }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start killed: ./target kill
//@ expect ready
//@ $ cat /proc/$PID/maps >before
//@ $ ugraft load fields.o --pid $PID
//> patch 'fields': enabled ([..]
//! ugraft: there are 256 KiB for shadow variables and no more: the process runs under a seccomp filter, which could kill it for the mremap that more would take
//@ say ?
//@ expect 4096 attached
//@ $ ugraft disable fields --pid $PID --quiet && ugraft unload fields --pid $PID --quiet
//@ $ diff before /proc/$PID/maps

//@ start denied: ./target fail
//@ expect ready
//@ $ cat /proc/$PID/maps >before
//@ $ ugraft load fields.o --pid $PID
//> patch 'fields': enabled ([..]
//@ say ?
//@ expect 4096 attached
//@ $ ugraft disable fields --pid $PID --quiet && ugraft unload fields --pid $PID --quiet
//@ $ diff before /proc/$PID/maps

//@ start allowed: ./target let
//@ expect ready
//@ $ cat /proc/$PID/maps >before
//@ $ ugraft load fields.o --pid $PID
//> patch 'fields': enabled ([..]
//@ say ?
//@ expect 20000 attached
//@ $ ugraft disable fields --pid $PID --quiet && ugraft unload fields --pid $PID --quiet
//@ $ diff before /proc/$PID/maps
