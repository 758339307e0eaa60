// The harness itself: a target is built from a section, answers, is stopped and goes on, forks, and what it is like can
// be compared. No patch is involved, so that a failure here is the harness's.

//@ file libgreet.c
const char *greet(void) { return "hello"; }

//@ file target.c
#include "target.h"
const char *greet(void);
static void *sleeper(void *arg)
{
	tell("ready");
	sleep(1000);
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, sleeper, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "fork")) {
			pid_t child = fork();
			if (child == 0)
				for (;;)
					pause();
			tell("child %d", child);
		} else {
			tell("%s %s", greet(), c);
		}
	}
	return 7;
}

//@ start target
//@ expect ready
//@ say world
//@ expect hello world
//@ snapshot
//@ unchanged
//@ alive
//@ signal STOP
//@ stopped
//@ unchanged
//@ stopped
//@ signal CONT
//@ say world
//@ expect hello world
//@ unchanged
//@ never goodbye [..]
//@ say fork
//@ expect child [=child]
//@ adopt child child
//@ alive
//@ clean
//@ at target say more
//@ at target expect hello more
//@ $ echo out; echo "pid $PID"; echo err >&2; exit 3
//> out
//> pid $child
//! err
//= 3
//@ at target close
//@ at target wait
//= 7
