// The tool is killed before each of its writes to a process that has a library loaded which it patches, lets go of, and patches again, and
// to whose variable the patch refers. The library's dynamic section is as it was in the end, and its own end goes as it would have gone.

//@ needs strace

//@ file libplug.c
#include "target.h"
static volatile int base = 100;
PATCHABLE int answer(int x) { __asm__ volatile("nop; nop; nop; nop"); return x + base - 99; }
__attribute__((destructor)) static void end(void) { tell("destructor %d", answer(1)); }
//@ build cc -O2 -g -shared -fPIC -pthread -I$SUPPORT libplug.c -o libplug.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <link.h>
static unsigned long finalizer_word(void *lib)
{
	ElfW(Dyn) *entry = ((struct link_map *)lib)->l_ld;
	while (entry->d_tag && entry->d_tag != DT_FINI)
		entry++;
	return entry->d_un.d_ptr;
}
int main(void)
{
	void *lib = dlopen("./libplug.so", RTLD_NOW);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "word"))
			tell("word %lx", finalizer_word(lib));
		else if (!strcmp(c, "call"))
			tell("%d", ((int (*)(int))dlsym(lib, "answer"))(1));
		else
			tell("unloaded %d", dlclose(lib)), lib = dlopen("./libplug.so", RTLD_NOW);
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
extern volatile int base;
KLP_SYMBOL(base, "libplug.so", "base", 0);
static int new_answer(int x) { return x + base; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I"$SDK" fix.c -o fix.o

//@ start host
//@ expect ready
//@ say word
//@ expect word [=word]
//@ $ sh $SUPPORT/killed-at-writes.sh 'load fix.o' 3 'disable fix' 'unload fix'
//@ say call
//@ expect 101
//@ $ sh $SUPPORT/killed-at-writes.sh 'disable fix' 3 'enable fix'
//@ say word
//@ expect word $word
//@ $ ugraft enable fix --pid $PID --quiet
//@ say unload
//@ expect destructor 101
//@ expect unloaded 0
//@ say call
//@ expect 101
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ sh $SUPPORT/killed-at-writes.sh 'unload fix' 1 'load fix.o' 'disable fix'
//@ clean
//@ say word
//@ expect word $word
//@ say unload
//@ expect destructor 2
//@ expect unloaded 0
