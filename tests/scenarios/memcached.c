// A program nobody here wrote, without a symbol of its own: Debian's memcached. The hot function is in the C library: sendmsg,
// through which every answer goes, patched in four busy threads while a client checks every value it gets back. The new one
// makes the system call itself and changes one answer, so that its work can be seen.

//@ needs memcached memcaslap
//@ file fix.c
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <ugraft/livepatch.h>
static ssize_t new_sendmsg(int fd, const struct msghdr *message, int flags)
{
	static const char answer[] = "VERSION patched\r\n";
	if (message->msg_iovlen > 0 && message->msg_iov[0].iov_len > 8 && !memcmp(message->msg_iov[0].iov_base, "VERSION ", 8)) {
		struct iovec text = { .iov_base = (void *)answer, .iov_len = sizeof answer - 1 };
		struct msghdr changed = { .msg_iov = &text, .msg_iovlen = 1 };
		ssize_t sent = syscall(SYS_sendmsg, fd, &changed, flags);
		return sent < 0 ? sent : (ssize_t)message->msg_iov[0].iov_len;
	}
	return syscall(SYS_sendmsg, fd, message, flags);
}
static struct klp_func funcs[] = { { .old_name = "sendmsg", .new_func = new_sendmsg }, {} };
static struct klp_object objs[] = { { .name = "libc.so.6", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file ask.py
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
if sys.argv[2:] == ["stats"]:
    s.sendall(b"stats\r\nquit\r\n")
    lines = s.makefile().read().splitlines()
    print(next(line.split()[2] for line in lines if "cmd_get" in line))
else:
    s.sendall(b"version\r\n")
    print(s.recv(100).decode().strip())

//@ start server: memcached -u nobody -l 127.0.0.1 -p $PORT -t 4 -m 2048
// With room for all that a quick machine sets in that time: what is evicted would count as missed.
//@ until /usr/bin/python3 ask.py $PORT
//@ $ /usr/bin/python3 ask.py $PORT
//> VERSION [=major].[..]
//@ start load: memcaslap -s 127.0.0.1:$PORT -T 1 -c 16 -v 1.0 -t 8s
//@ until test "$(/usr/bin/python3 ask.py $PORT stats)" -gt 1000
//@ $ ugraft load fix.o --pid $server --timeout 60s
//> patch 'fix': enabled (10 threads, longest pause [..], [..] in all)
//@ $ /usr/bin/python3 ask.py $PORT
//> VERSION patched
//@ $ for i in 1 2 3 4 5; do ugraft disable fix --pid $server --timeout 60s --quiet && ugraft enable fix --pid $server --timeout 60s --quiet || exit; done
//@ $ ugraft disable fix --pid $server --timeout 60s --quiet
//@ $ ugraft unload fix --pid $server --timeout 60s --quiet
//@ $ /usr/bin/python3 ask.py $PORT
//> VERSION $major.[..]
//@ at server clean
//@ at server alive
//@ at load wait
//> [...]
//> get_misses: 0
//> verify_misses: 0
//> verify_failed: 0
//> [...]
//@ at server alive
