// After exec nothing of the patches is left: the process is another program, and the tool says that it is not patched. exec
// undoes the mappings; descriptors would survive it, so none may have been left open without close-on-exec.

//@ file target.c
#include "target.h"
#include <dirent.h>
PATCHABLE int f(void) { return 1; }
static int files(void)
{
	int n = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}
int main(int argc, char **argv)
{
	if (argc > 1 && atoi(argv[1]) != files())
		tell("descriptors: %s before, %d after", argv[1], files());
	tell("ready");
	char before[16];
	snprintf(before, sizeof before, "%d", files());
	for (const char *c; (c = command());) {
		if (!strcmp(c, "exec"))
			execl("/proc/self/exe", argv[0], before, (char *)0);
		tell("f %d", f());
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect f 2
//@ say exec
//@ expect ready
//@ clean
//@ $ ugraft status --pid $PID
//> process $target (exe): not patched
//= 3
//@ say ?
//@ expect f 1
//@ never descriptors: [..]
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect f 2
