// Eight threads load and unload libraries without pause while transitions are begun, held pending, turned round and replaced at random,
// and the tool is killed at random. A thread never runs one function as it was and another as it is to be, from the constructor on; and
// nothing is left behind.

//@ needs bash
//@ file libplug.c
typedef int function(int);
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline)) int twice(int x) { __asm__ volatile(""); return x * 2; }
// Changes as well, into the same: nobody who is in here switches before both are called.
__attribute__((noinline)) int pair(function *a, function *b, int x) { __asm__ volatile(""); int first = a(x) * 1000; return first + b(x); }
static int at_start;
__attribute__((constructor)) static void begin(void) { at_start = pair(answer, twice, 10); }
int started(void) { return at_start; }
//@ build for i in 0 1 2 3 4 5 6 7; do cc -O2 -g -shared -fPIC -fno-ipa-ra -Wl,-soname,libplug$i.so libplug.c -o libplug$i.so; done

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
static atomic_ulong cycles, wrong;
static atomic_int over, rest, resting;
typedef int function(int);
static void check(int value, int x)
{
	int a = value / 1000 - x, b = value % 1000 / x;

	if (!(a == 1 && b == 2) && !(a == 100 && b == 3) && !(a == 200 && b == 3) && !(a == 300 && b == 2) && !wrong++)
		tell("%d is wrong for %d", value, x);
}
static void *run(void *number)
{
	char name[32];

	sprintf(name, "./libplug%ld.so", (long)number);
	while (!over) {
		void *lib = dlopen(name, RTLD_NOW);

		if (!lib) {
			if (!wrong++)
				tell("%s", dlerror());
			continue;
		}
		int (*pair)(function *, function *, int) = dlsym(lib, "pair"), (*started)(void) = dlsym(lib, "started");
		function *answer = dlsym(lib, "answer"), *twice = dlsym(lib, "twice");
		check(started(), 10);
		for (int i = 0; i < 20; i++)
			check(pair(answer, twice, 7), 7);
		dlclose(lib);
		cycles++;
		if (rest) {
			resting++;
			while (rest && !over)
				usleep(1000);
			resting--;
		}
	}
	return NULL;
}
// Changes, and has a thread in it as long as there is a file of that name: that long no transition completes.
__attribute__((noinline)) int held(int x)
{
	while (!access("hold", F_OK) && !over)
		usleep(1000);
	return x;
}
static void *hold(void *nothing)
{
	while (!over)
		held(1), usleep(1000);
	return nothing;
}
static void count(int *maps, long *resident)
{
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");

	for (*maps = 0; fgets(line, sizeof line, f);)
		++*maps;
	fclose(f);
	f = fopen("/proc/self/statm", "r");
	if (fscanf(f, "%*d %ld", resident) != 1)
		*resident = 0;
	fclose(f);
}
int main(void)
{
	pthread_t threads[9];
	int maps = 0;
	long resident = 0;

	for (long i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, run, (void *)i);
	pthread_create(&threads[8], NULL, hold, NULL);
	while (cycles < 100)
		usleep(1000);
	tell("ready");
	for (const char *c; (c = command());) {
		int now;
		long present;

		while (!strcmp(c, "enough") && cycles < 10000)
			usleep(1000);
		for (rest = 1; resting < 8;)
			usleep(1000);
		count(&now, &present);
		if (!maps)
			maps = now, resident = present;
		if (now != maps)
			tell("%d mappings, before %d", now, maps);
		// A page for each time that a library came would be ten thousand.
		tell("%lu wrong, %s", wrong, now == maps && present - resident < 2000 ? "flat" : "grown");
		rest = 0;
	}
	over = 1;
	for (int i = 0; i < 9; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
typedef int function(int);
extern int access(const char *, int), usleep(unsigned);
static int new_answer(int x) { return x + ADD; }
static int new_pair(function *a, function *b, int x) { int first = a(x) * 1000; return first + b(x); }
static int new_held(int x) { while (!access("hold", 0)) usleep(1000); return x; }
#ifdef TIMES
static int new_twice(int x) { return x * TIMES; }
#endif
static struct klp_func plug[] = {
	{ .old_name = "answer", .new_func = new_answer }, { .old_name = "pair", .new_func = new_pair },
#ifdef TIMES
	{ .old_name = "twice", .new_func = new_twice },
#endif
	{}
};
static struct klp_func host[] = { { .old_name = "held", .new_func = new_held }, {} };
static struct klp_object objs[] = {
	{ .name = NULL, .funcs = host },
	{ .name = "libplug0.so", .funcs = plug }, { .name = "libplug1.so", .funcs = plug },
	{ .name = "libplug2.so", .funcs = plug }, { .name = "libplug3.so", .funcs = plug },
	{ .name = "libplug4.so", .funcs = plug }, { .name = "libplug5.so", .funcs = plug },
	{ .name = "libplug6.so", .funcs = plug }, { .name = "libplug7.so", .funcs = plug }, {}
};
#ifndef REPLACE
#define REPLACE false
#endif
static struct klp_patch patch = { .objs = objs, .replace = REPLACE };
KLP_PATCH(patch);
//@ build cc -O2 -c -I$SDK -DADD=100 -DTIMES=3 fix.c && cc -O2 -c -I$SDK -DADD=200 -DTIMES=3 fix.c -o more.o && cc -O2 -c -I$SDK -DADD=300 -DREPLACE=true fix.c -o all.o

//@ file storm.sh
# Rounds of all that can be done with three patches. One in four tools is killed.
RANDOM=${SEED:=$$}
trap 'rm -f hold' EXIT
run() {
	local killed=
	((RANDOM % 4)) || killed="timeout -s KILL 0.$(printf %03d $((RANDOM % 200)))"
	((RANDOM % 2)) && touch hold || rm -f hold
	$killed ugraft "$@" --pid $PID --timeout 200ms --quiet >said 2>&1
	echo $? "$@" >>done
	case $(tail -n 1 done) in
	9* | 10* | 101* | 13[0-68-9]*) echo "seed $SEED: $(tail -n 1 done)"; cat said ;;
	esac
}
some() {
	for n in $(seq $((RANDOM % 4))); do
		((RANDOM % 3)) && run reverse || run wait $1
	done
}
for round in $(seq ${ROUNDS:=5}); do
	for name in fix more all; do
		# Under such a load a command may find what it looks at gone, and be refused; it is given again then.
		for n in $(seq 20); do
			run load $name.o --keep
			grep -q 'cannot redirect\|is not loaded\|cannot read\|has no function' said || break
		done
		some $name
	done
	for name in all more fix; do
		run disable $name --keep
		some $name
		run unload $name
	done
done 2>/dev/null
rm -f hold
# To its end, and all away.
for n in $(seq 200); do
	for name in all more fix; do
		ugraft disable $name --pid $PID --quiet >said 2>&1
		ugraft unload $name --pid $PID --quiet >>said 2>&1
	done
	ugraft list --pid $PID 2>&1 | grep -q 'fix\|more\|all' || exit 0
done
echo "seed $SEED: patches are left"; cat said; ugraft status --pid $PID

//@ start host
//@ expect ready
//@ say now
//@ expect 0 wrong, flat
//@ $ bash storm.sh
//@ say enough
//@ expect 0 wrong, flat
//@ clean
//@ close
