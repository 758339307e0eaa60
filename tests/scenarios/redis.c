// A program nobody here wrote: Debian's redis-server, with its main thread, its background threads and jemalloc's, under the
// load of its own benchmark client. The command INCR, whose whole function is a tail call, is patched to count by two,
// then a replacing patch makes it count by ten, then everything is taken off. The client stops at the first error reply.

//@ needs redis-server redis-benchmark redis-cli
//@ file fix.c
#include <ugraft/livepatch.h>
/* The server's own function; INCR is incrDecrCommand(c, 1). */
struct client;
void incrDecrCommand(struct client *c, long long by);
static void incr(struct client *c) { incrDecrCommand(c, 2); }
static struct klp_func funcs[] = { { .old_name = "incrCommand", .new_func = incr }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
struct client;
struct robj;
void incrDecrCommand(struct client *c, long long by);
/* GET counts its calls on the way: a hot function of a second command. */
void getGenericCommand(struct client *c);
static long gets;
static void incr(struct client *c) { incrDecrCommand(c, 10); }
static void get(struct client *c) { __atomic_fetch_add(&gets, 1, __ATOMIC_RELAXED); getGenericCommand(c); }
static struct klp_func funcs[] = {
	{ .old_name = "incrCommand", .new_func = incr },
	{ .old_name = "getCommand", .new_func = get },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start server: redis-server --bind 127.0.0.1 --port $PORT --save "" --appendonly no --daemonize no
//@ until redis-cli -p $PORT ping
//@ $ redis-cli -p $PORT incr mine
//> 1
//@ start load: redis-benchmark -p $PORT -t get,set,incr -c 8 -n 20000 -l -q
//@ until test "$(redis-cli -p $PORT get counter:__rand_int__)" -gt 1000
//@ $ ugraft load fix.o --pid $server --timeout 60s
//> patch 'fix': enabled (5 threads, longest pause [..], [..] in all)
//@ $ redis-cli -p $PORT incr mine
//> 3
//@ at load alive
//@ $ ugraft load cumulative.o --pid $server --timeout 60s
//> patch 'cumulative': enabled; replaced fix (5 threads, longest pause [..], [..] in all)
//@ $ redis-cli -p $PORT incr mine
//> 13
//@ at load alive
//@ $ ugraft disable cumulative --pid $server --timeout 60s --quiet
//@ $ redis-cli -p $PORT incr mine
//> 14
//@ $ for i in 1 2 3 4 5; do ugraft enable cumulative --pid $server --timeout 60s --quiet && ugraft disable cumulative --pid $server --timeout 60s --quiet || exit; done
//@ $ ugraft unload cumulative --pid $server --timeout 60s --quiet
//@ $ ugraft unload fix --pid $server --timeout 60s --quiet
//@ $ redis-cli -p $PORT incr mine
//> 15
//@ at load alive
//@ at load never Error[..]
//@ at load never [..]Connection[..]
//@ at load signal TERM
//@ at load wait
//> [...]
//! [...]
//= 143
//@ $ redis-cli -p $PORT info stats | tr -d '\r' | grep -E '^(total_error_replies|rejected_connections):'
//> rejected_connections:0
//> total_error_replies:0
//@ at server alive
//@ at server clean
//@ $ redis-cli -p $PORT shutdown nosave
//@ at server wait
//> [...]
//! [...]
