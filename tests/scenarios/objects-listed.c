// What unwinders are told of: dl_iterate_phdr lists a patch among the objects, with its code and the index of its unwind
// tables, and says by its counts that the list has changed; and it ends with the patch. So for the loader of musl, and in static
// programs.

//@ variant glibc
//@ variant static TARGET_FLAGS=-static
//@ variant musl TARGET_CC=musl-gcc
//@ variant musl-static TARGET_CC=musl-gcc TARGET_FLAGS=-static
//@ needs musl-gcc
//@ file target.c
#include "target.h"
#include <link.h>
#include <signal.h>
PATCHABLE void *where(void) { return (void *)where; }
struct seen {
	ElfW(Addr) hidden;	/* the complement of the address: left on the stack, that itself would look like a return address */
	int count, ours, of_address, first, indexed;
	unsigned long long adds, subs;
};
static int look(struct dl_phdr_info *info, size_t size, void *data)
{
	struct seen *seen = data;
	int covers = 0, indexed = 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		ElfW(Addr) start = info->dlpi_addr + header->p_vaddr;
		if (header->p_type == PT_LOAD && seen->hidden <= ~start && seen->hidden > ~(start + header->p_memsz))
			covers = 1;
		if (header->p_type == PT_GNU_EH_FRAME)
			indexed = *(const unsigned char *)start == 1;
	}
	if (size < sizeof *info)
		abort();
	if (covers) {
		seen->of_address = 1 + !strncmp(info->dlpi_name, "ugraft:patch:fix", 16);
		seen->indexed = indexed;
	}
	if (!seen->count++)
		seen->first = !strncmp(info->dlpi_name, "ugraft:", 7);
	seen->ours += !strncmp(info->dlpi_name, "ugraft:", 7);
	seen->adds = info->dlpi_adds;
	seen->subs = info->dlpi_subs;
	return 0;
}
static int stop_at_second(struct dl_phdr_info *info, size_t size, void *data)
{
	return ++*(int *)data == 2 ? 7 : 0;
}
int main(void)
{
	struct seen before = { 0 };
	dl_iterate_phdr(look, &before);
	tell("ready");
	while (command()) {
		struct seen now = { .hidden = ~(ElfW(Addr))where() };
		int n = 0, result = dl_iterate_phdr(stop_at_second, &n);
		dl_iterate_phdr(look, &now);
		tell("%d more, %d ours, counts %s, found %s%s%s, stopped %d", now.count - before.count, now.ours,
		     now.adds == before.adds && now.subs == before.subs ? "as before" : "changed",
		     now.of_address == 2 ? "in the patch" : now.of_address ? "in the program" : "nowhere",
		     now.indexed ? " with tables" : "", now.first ? " FIRST" : "",
		     result == 7 && n == 2 ? 1 : result || n != now.count);
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static void *where(void) { return (void *)where; }
static struct klp_func funcs[] = { { .old_name = "where", .new_func = where }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect 0 more, 0 ours, counts as before, found in the program[..], stopped [..]
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect 2 more, 2 ours, counts changed, found in the patch with tables, stopped 1
//@ $ cp fix.o other.o; ugraft load other.o --disabled --pid $PID --quiet
//@ say ?
//@ expect 3 more, 3 ours, counts changed, found in the patch with tables, stopped 1
//@ $ ugraft unload other --pid $PID --quiet
//@ say ?
//@ expect 2 more, 2 ours, counts changed, found in the patch with tables, stopped 1
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say ?
//@ expect 0 more, 0 ours, counts as before, found in the program[..], stopped [..]
//@ clean
