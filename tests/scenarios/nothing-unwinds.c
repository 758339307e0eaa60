// In a program that has nothing which unwinds, nor can bring it in, unwinders are told of no patch: the C library is left as it is. A
// patch that can bring one in has all patches made known.

//@ file target.c
#include "target.h"
PATCHABLE void f(void) { tell("old"); }
int main(void)
{
	tell("ready");
	while (command())
		f();
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
static void f(void)
{
	if (write(1, "new\n", 4) != 4)
		return;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file seen.c
#define _GNU_SOURCE
#include <link.h>
#include <string.h>
#include <ugraft/livepatch.h>
#include <unistd.h>
static int count(struct dl_phdr_info *info, size_t size, void *n)
{
	(void)size;
	*(int *)n += !strncmp(info->dlpi_name, "ugraft:patch:", 13);
	return 0;
}
static void f(void)
{
	int n = 0;
	dl_iterate_phdr(count, &n);
	char line[] = "sees 0 patches\n";
	line[5] += n;
	if (write(1, line, sizeof line - 1) != sizeof line - 1)
		return;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say go
//@ expect new
//@ $ grep -c ugraft:unwinder /proc/$PID/maps
//> 0
//= 1
//@ $ ugraft load seen.o --pid $PID --quiet
//@ say go
//@ expect sees 2 patches
//@ $ ugraft disable seen --pid $PID --quiet
//@ $ ugraft unload seen --pid $PID --quiet
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say go
//@ expect old
//@ clean
