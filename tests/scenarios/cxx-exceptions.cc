// Exceptions pass through code of patches as through any other: from a function of the program that patch code calls to a handler
// beyond it, with the destructors of the patch's frame run on the way; to a handler in the patch; and from the patch itself
// to its caller. So they do while a transition runs, and in threads that throw all the time.

//@ file target.cc
#include "target.h"
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
PATCHABLE int limit(int n)
{
	if (n > 10)
		throw std::runtime_error("too many: " + std::to_string(n));
	return n;
}
PATCHABLE int pass(int n) { return limit(n); }
PATCHABLE int check(int n) { return limit(n); }
PATCHABLE int raise(int n) { return n; }
PATCHABLE void held(void) { tell("held"); command(); }
PATCHABLE int hold(int n)
{
	held();
	return limit(n);
}
static int attempt(int (*f)(int), int n)
{
	try {
		return f(n);
	} catch (const std::runtime_error &e) {
		return -1;
	} catch (int thrown) {
		return -thrown;
	}
}
static std::atomic<bool> done;
static std::atomic<long> thrown, wrong;
static void thrower()
{
	while (!done) {
		int a = attempt(pass, 20), b = attempt(check, 20), c = attempt(raise, 5);
		wrong += a != -1 || (b != -1 && b != 3) || (c != 5 && c != -5);
		thrown++;
		usleep(200);
	}
}
int main()
{
	std::thread one, two;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "hold"))
			tell("hold %d", attempt(hold, 20));
		else if (!strcmp(c, "throw"))
			one = std::thread(thrower), two = std::thread(thrower);
		else if (!strcmp(c, "wait"))
			for (long until = thrown + 300; thrown < until;)
				usleep(1000);
		else {
			int now[] = { attempt(pass, 20), attempt(check, 20), attempt(raise, 5),
				      attempt(pass, 1), attempt(check, 1), attempt(raise, 1) };
			tell("%d %d %d, %d %d %d", now[0], now[1], now[2], now[3], now[4], now[5]);
		}
	}
	done = true;
	one.join(), two.join();
	tell("%s", thrown && !wrong ? "all right" : "wrong");
	return 0;
}

//@ file fix.cc
#include <ugraft/livepatch.h>
#include <stdexcept>
int limit(int n);
void held(void);
static int cleaned;
struct Guard {
	~Guard() { __atomic_fetch_add(&cleaned, 1, __ATOMIC_RELAXED); }
};
static int pass(int n)
{
	Guard guard;
	return limit(n) + 100;
}
static int check(int n)
{
	Guard guard;
	try {
		return limit(n) + 100;
	} catch (const std::exception &e) {
		return 3;
	}
}
static int raise(int n)
{
	Guard guard;
	if (n == 5)
		throw n;
	return cleaned; /* in the five calls before */
}
static int hold(int n)
{
	Guard guard;
	held();
	return limit(n);
}
static struct klp_func funcs[] = {
	{ "pass", (void *)pass }, { "check", (void *)check }, { "raise", (void *)raise }, { "hold", (void *)hold }, {}
};
static struct klp_object objs[] = { { NULL, funcs }, {} };
static struct klp_patch patch = { NULL, objs };
KLP_PATCH(patch);
//@ build c++ -O2 -g -rdynamic -pthread -I"$SUPPORT" target.cc -o target
//@ build c++ -c -O2 -I"$SDK" fix.cc -o fix.o

//@ start target
//@ expect ready
//@ say ?
//@ expect -1 -1 5, 1 1 1
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect -1 3 -5, 101 101 5
//@ say hold
//@ expect held
//@ $ ugraft disable fix --pid $PID --quiet --keep --timeout 100ms
//! ugraft: patch 'fix' is still in transition: [..]_Z4holdi (frame 2): in the function[..]
//= 5
//@ say on
//@ expect hold -1
//@ $ ugraft wait fix --pid $PID --quiet
//@ say ?
//@ expect -1 -1 5, 1 1 1
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
// Loaded and gone again and again, while two other threads throw.
//@ say throw
//@ say wait
//@ $ for i in 1 2 3 4 5 6 7 8; do ugraft load fix.o --pid $PID --quiet && ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet; done
//@ say wait
//@ clean
//@ close
//@ wait
//> all right
