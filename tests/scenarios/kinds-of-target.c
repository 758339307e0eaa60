// The same patch for a program built in every way that is met: dynamic, position-independent or not, static,
// static-pie, for musl, stripped with a symbol left for the dynamic linker, stripped with its symbols in a separate file or
// as MiniDebugInfo inside, and with landing pads for indirect calls at every entry.

//@ variant pie TARGET_FLAGS="-fPIE -pie"
//@ variant no-pie TARGET_FLAGS="-fno-PIE -no-pie"
//@ variant static TARGET_FLAGS="-static"
//@ variant static-pie TARGET_FLAGS="-static-pie"
//@ variant clang TARGET_CC=clang NEEDS=clang
//@ variant musl TARGET_CC=musl-gcc NEEDS=musl-gcc
//@ variant musl-static TARGET_CC=musl-gcc TARGET_FLAGS="-static" NEEDS=musl-gcc
//@ variant stripped TARGET_FLAGS="-rdynamic" AFTER_BUILD="strip target"
//@ variant debuglink AFTER_BUILD="objcopy --only-keep-debug target target.debug && strip target && objcopy --add-gnu-debuglink=target.debug target"
//@ variant minidebuginfo AFTER_BUILD="objcopy -S --keep-symbol=f --keep-symbol=main --remove-section=.debug* target mini && objcopy --only-keep-debug mini mini.debug && xz mini.debug && strip target && objcopy --add-section .gnu_debugdata=mini.debug.xz target" NEEDS=xz
//@ variant endbr TARGET_FLAGS="-fcf-protection=full" PATCH_FLAGS="-fcf-protection=full"
//@ variant no-endbr TARGET_FLAGS="-fcf-protection=none" PATCH_FLAGS="-fcf-protection=none"
//@ variant O0 TARGET_FLAGS="-O0" PATCH_FLAGS="-O0"
//@ variant O3-sections TARGET_FLAGS="-O3 -ffunction-sections -Wl,--gc-sections" PATCH_FLAGS="-O3 -ffunction-sections -fdata-sections"
//@ variant pic-patch PATCH_FLAGS="-fPIC"
//@ variant clang-patch PATCH_CC=clang NEEDS=clang
//@ variant hidden-plt PATCH_FLAGS="-fno-plt -fPIC"

//@ file target.c
#include "target.h"
PATCHABLE void f(int n, char *text) { sprintf(text, "old %d", n); }
static void *other(void *arg)
{
	tell("ready");
	for (;;)
		pause();
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, other, NULL);
	for (const char *c; (c = command());) {
		char text[32];
		f(atoi(c), text);
		tell("%s", text);
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
/* Constants, zeroed data and pointers of the patch's own; nothing of the target's, which a static one may not have. */
static int calls;
static const char *const words[] = { "none", "one", "two" };
static void f(int n, char *text)
{
	const char *word = n >= 0 && n < 3 ? words[n] : "many";
	for (const char *s = "new "; *s; s++)
		*text++ = *s;
	while (*word)
		*text++ = *word++;
	*text++ = ' ';
	*text++ = '0' + ++calls;
	*text = 0;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 1
//@ expect old 1
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 1
//@ expect new one 1
//@ say 2
//@ expect new two 2
//@ say 7
//@ expect new many 3
//@ alive
//@ $ ugraft disable fix --pid $PID --quiet
//@ say 1
//@ expect old 1
//@ $ ugraft unload fix --pid $PID --quiet
//@ say 1
//@ expect old 1
//@ alive
//@ clean
//@ unchanged
