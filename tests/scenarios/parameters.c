// A patch's parameters, set when it is loaded and while it is; its init, which may refuse, and its exit.

//@ file target.c
#include "target.h"
PATCHABLE int answer(void) { return 41; }
char journal[256];
int main(void)
{
	tell("ready");
	while (command()) {
		tell("%d [%s]", answer(), journal);
		journal[0] = 0;
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/module.h>
#include <string.h>
extern char journal[];
static int result = 42;
module_param(result, int, 0644);
MODULE_PARM_DESC(result, "what answer() returns");
static int init_ret;
module_param(init_ret, int, 0);
static int pre_patch_ret;
module_param(pre_patch_ret, int, 0);
static char *text = "nothing";
module_param(text, charp, 0644);
static bool loud;
module_param(loud, bool, 0644);
static unsigned long large;
module_param_named(very_large, large, ulong, 0644);

static int answer(void)
{
	if (loud)
		strcat(journal, text);
	return large ? -1 : result;
}
static int pre_patch(struct klp_object *obj) { return pre_patch_ret; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = { { .funcs = funcs, .callbacks = { .pre_patch = pre_patch } }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
static int init(void)
{
	strcat(journal, "init ");
	strcat(journal, text);
	return init_ret;
}
static void leave(void) { strcat(journal, " exit"); }
module_init(init);
module_exit(leave);
//@ build cc -c -O2 -fPIC -I$SDK fix.c

//@ start target
//@ expect ready
//@ $ ugraft load fix.o nonsense=1 --pid $PID
//! ugraft: parameter nonsense is not known: the patch has init_ret, loud, pre_patch_ret, result, text, very_large
//= 2
//@ $ ugraft load fix.o result=many --pid $PID
//! ugraft: parameter result cannot be "many": give it a whole number of 32 bits
//= 2
//@ $ ugraft load fix.o init_ret=-12 --pid $PID
//! ugraft: the init function of patch 'fix' refused with -12; the patch was not loaded
//= 1
//@ clean
//@ say x
//@ expect 41 [init nothing]

// What init did, exit undoes, when the patch cannot be enabled.
//@ $ ugraft load fix.o pre_patch_ret=-19 --pid $PID
//! ugraft: the pre_patch callback of patch 'fix' for the main executable refused with -19; the patch was not enabled
//= 1
//@ clean
//@ say x
//@ expect 41 [init nothing exit]

//@ $ ugraft load fix.o result=0x2b text=hello --pid $PID
//> patch 'fix': enabled ([..]
//@ say x
//@ expect 43 [init hello]
//@ $ ugraft param fix --pid $PID
//> init_ret=0
//> loud=N
//> pre_patch_ret=0
//> result=43
//> text=hello
//> very_large=0
//@ $ ugraft param fix result=-5 --pid $PID
//> result=-5
//@ $ ugraft param fix loud=y --pid $PID
//> loud=Y
//@ $ ugraft param fix 'text=good bye' --pid $PID
//> text=good bye
//@ say x
//@ expect -5 [good bye]
//@ $ ugraft param fix very_large=18446744073709551615 --pid $PID
//> very_large=18446744073709551615
//@ $ ugraft param fix very_large --pid $PID
//> very_large=18446744073709551615
//@ $ ugraft param fix none --pid $PID
//! ugraft: patch 'fix' has no parameter none; `ugraft param fix` lists what it has
//= 4
//@ $ ugraft param fix result=99999999999 --pid $PID
//! ugraft: parameter result cannot be "99999999999": give it a whole number of 32 bits
//= 2
//@ $ ugraft param other --pid $PID
//! ugraft: no patch 'other' is loaded in this target: see the list of patches for the names there are
//= 4
//@ say x
//@ expect -1 [good bye]
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID
//> patch 'fix': unloaded ([..]
//@ clean
//@ say x
//@ expect 41 [ exit]

// Loaded without being enabled: init runs, and exit.
//@ $ ugraft load fix.o --disabled --pid $PID --quiet
//@ say x
//@ expect 41 [init nothing]
//@ $ ugraft unload fix --pid $PID --quiet
//@ say x
//@ expect 41 [ exit]
//@ clean
