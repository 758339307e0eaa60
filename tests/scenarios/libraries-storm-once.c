// Libraries are loaded and unloaded without pause, those that patches change and others, and memory is mapped and given back beside. Each
// command is given once and does what it says; what cannot be done is refused at once, with its reason.

//@ file libplug.c
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline, noclone)) static int hidden(int x) { __asm__ volatile(""); return x * 2; }
static int at_start;
__attribute__((constructor)) static void begin(void) { at_start = answer(10) * 1000 + hidden(10); }
int both(int x) { return answer(x) * 1000 + hidden(x); }
int started(void) { return at_start; }
//@ build for i in 0 1 2 3 4 5; do cc -O2 -g -shared -fPIC -Wl,-soname,libplug$i.so libplug.c -o libplug$i.so; done
//@ file libother.c
char room[SIZE];
int nothing(void) { return room[0]; }
//@ build for i in 1 2 3; do cc -O2 -shared -fPIC -DSIZE=${i}00000 libother.c -o libother$i.so; done

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/mman.h>
enum { PLUGS = 6, OTHERS = 2, MAPPERS = 2 };
static atomic_ulong cycles[PLUGS], wrong;
static atomic_int over, wanted;
static int is_right(int value, int x, int add)
{
	int a = value / 1000 - x, b = value % 1000 / x;

	switch (a) {
	case 1: return b == 2 && (!add || add == a);
	case 100: return b == 3 && (!add || add == a);
	case 200: return b == 3 && (!add || add == a);
	case 300: return b == 2 && (!add || add == a);
	}
	return 0;
}
static void check(int value, int x, int add)
{
	if (!is_right(value, x, add) && !wrong++)
		tell("%d is wrong for %d, %d is wanted", value, x, add);
}
static void *run(void *number)
{
	long i = (long)number;
	char name[32];

	sprintf(name, "./libplug%ld.so", i);
	while (!over) {
		int add = wanted;
		void *lib = dlopen(name, RTLD_NOW);

		if (!lib) {
			if (!wrong++)
				tell("%s", dlerror());
			continue;
		}
		int (*both)(int) = dlsym(lib, "both"), (*started)(void) = dlsym(lib, "started");
		check(started(), 10, add);
		// Some stay for a while.
		for (int turn = 0; turn < (i < 2 ? 40 : 1) && !over; turn++) {
			add = wanted;
			check(both(7), 7, add);
			if (i < 2)
				usleep(500);
		}
		dlclose(lib);
		cycles[i]++;
	}
	return NULL;
}
static void *other(void *number)
{
	static const char *const names[] = { "./libother1.so", "./libother2.so", "libm.so.6", "./libother3.so" };

	for (unsigned i = (long)number; !over; i++) {
		void *lib = dlopen(names[i % 4], RTLD_NOW);

		if (lib)
			dlclose(lib);
	}
	return NULL;
}
static void *mapper(void *number)
{
	for (unsigned i = (long)number; !over; i++) {
		size_t len = 4096 * (1 + i % 97);
		void *at = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		usleep(100);
		munmap(at, len);
	}
	return NULL;
}
// Until each thread that calls has begun anew so many times.
static void pass(int times)
{
	unsigned long before[PLUGS];

	for (int i = 0; i < PLUGS; i++)
		before[i] = cycles[i];
	for (int i = 0; i < PLUGS; i++)
		while (cycles[i] < before[i] + times)
			usleep(200);
}
int main(void)
{
	pthread_t threads[PLUGS + OTHERS + MAPPERS];
	int n = 0, add;

	for (long i = 0; i < PLUGS; i++)
		pthread_create(&threads[n++], NULL, run, (void *)i);
	for (long i = 0; i < OTHERS; i++)
		pthread_create(&threads[n++], NULL, other, (void *)i);
	for (long i = 0; i < MAPPERS; i++)
		pthread_create(&threads[n++], NULL, mapper, (void *)i);
	pass(1);
	tell("ready");
	// What all calls are to give now, asked by the script.
	for (FILE *ask; (ask = fopen("ask", "r")) && fscanf(ask, "%d", &add) == 1 && add; fclose(ask)) {
		wanted = add;
		pass(1);
		wanted = 0;
		pass(1);
		FILE *told = fopen("told", "w");

		fprintf(told, "%lu wrong\n", atomic_exchange(&wrong, 0));
		fclose(told);
	}
	over = 1;
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	tell("over");
	command();
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + ADD; }
#ifdef TIMES
static int new_hidden(int x) { return x * TIMES; }
#endif
static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = new_answer },
#ifdef TIMES
	{ .old_name = "hidden", .new_func = new_hidden },
#endif
	{}
};
static struct klp_object objs[] = {
	{ .name = "libplug0.so", .funcs = funcs }, { .name = "libplug1.so", .funcs = funcs }, { .name = "libplug2.so", .funcs = funcs },
	{ .name = "libplug3.so", .funcs = funcs }, { .name = "libplug4.so", .funcs = funcs }, { .name = "libplug5.so", .funcs = funcs }, {}
};
static struct klp_patch patch = { .objs = objs, .replace = REPLACE };
KLP_PATCH(patch);
//@ build cc -O2 -c -I$SDK -DREPLACE=0 -DADD=100 -DTIMES=3 fix.c && cc -O2 -c -I$SDK -DREPLACE=0 -DADD=200 fix.c -o more.o && cc -O2 -c -I$SDK -DREPLACE=1 -DADD=300 fix.c -o all.o
//@ file lacking.c
#include <ugraft/livepatch.h>
extern int nobody_has_this(int);
static int new_answer(int x) { return nobody_has_this(x); }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug0.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -fPIC -c -I$SDK lacking.c
//@ build mkfifo ask told

//@ file storm.sh
commands=0 failed=0
run() {
	commands=$((commands + 1))
	ugraft "$@" --pid $PID --quiet >said 2>&1 || { failed=$((failed + 1)); echo "$@: $(cat said)"; }
}
gives() {
	echo $1 >ask
	read answer <told
	[ "$answer" = "0 wrong" ] || echo "$1: $answer"
}
# The time is that of a few looks at the target, not that of a timeout.
lacks() {
	began=$(date +%s%N)
	ugraft load lacking.o --pid $PID >said 2>&1
	[ $? = 6 ] && grep -q 'not found in the target: `nobody_has_this`' said || cat said
	took=$((($(date +%s%N) - began) / 1000000))
	[ $took -lt 5000 ] || echo "refused after $took ms"
}
for round in $(seq ${ROUNDS:=3}); do
	lacks
	run load fix.o; gives 100
	run load more.o; gives 200
	lacks
	run disable more; gives 100
	run unload more
	run disable fix; gives 1
	run enable fix; gives 100
	run load all.o; gives 300
	run unload fix
	run disable all; gives 1
	run unload all
done
echo 0 >ask
echo "$commands commands, $failed failed"

//@ start host
//@ expect ready
//@ $ sh storm.sh
//> 30 commands, 0 failed
//@ expect over
//@ clean
//@ close
