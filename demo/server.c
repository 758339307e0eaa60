/*
 * A small shop server with two mistakes in it, to be patched while it serves. HTTP/1.1, one thread per connection out of
 * a fixed crew:
 *
 *	GET /price?cents=250&count=10	-> what so many pieces cost, in cents
 *	GET /checksum?text=abc		-> the CRC-32 of the text, eight hexadecimal digits
 *
 *	cc -O2 -g -pthread -o server server.c
 *	./server [PORT]			prints "listening on 127.0.0.1:PORT", ends with its standard input
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CREW = 8, REQUEST_MAX = 4096 };

/* Ten per cent off from ten pieces on. The mistake: exactly ten pieces get nothing. */
__attribute__((noinline)) long price(long cents, long count)
{
	long total = cents * count;
	if (count > 10)
		total -= total / 10;
	return total;
}

/* CRC-32. Two mistakes: bit by bit it is slow, and the final inversion was forgotten. */
__attribute__((noinline)) uint32_t checksum(const char *text, size_t length)
{
	uint32_t crc = 0xffffffff;
	for (size_t i = 0; i < length; i++) {
		crc ^= (unsigned char)text[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
	}
	return crc;
}

static int answer(const char *request, char *body, size_t size)
{
	long cents, count;
	char text[REQUEST_MAX];
	if (sscanf(request, "GET /price?cents=%ld&count=%ld ", &cents, &count) == 2)
		return snprintf(body, size, "%ld\n", price(cents, count));
	if (sscanf(request, "GET /checksum?text=%4000s ", text) == 1)
		return snprintf(body, size, "%08x\n", checksum(text, strlen(text)));
	return -1;
}

/* Serves one connection until the client leaves it. */
static void serve(int connection)
{
	char request[REQUEST_MAX + 1], body[64], reply[256];
	size_t have = 0;
	for (;;) {
		request[have] = 0;
		char *end = strstr(request, "\r\n\r\n");
		if (!end) {
			ssize_t got = have < REQUEST_MAX ? read(connection, request + have, REQUEST_MAX - have) : 0;
			if (got <= 0)
				return;
			have += (size_t)got;
			continue;
		}
		int length = answer(request, body, sizeof body);
		const char *status = length < 0 ? "404 Not Found" : "200 OK";
		int total = snprintf(reply, sizeof reply, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%.*s", status,
				     length < 0 ? 0 : length, length < 0 ? 0 : length, body);
		if (write(connection, reply, (size_t)total) != total)
			return;
		size_t used = (size_t)(end + 4 - request);
		memmove(request, request + used, have - used);
		have -= used;
	}
}

static void *crew(void *argument)
{
	int listener = *(int *)argument, on = 1;
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		if (connection < 0) {
			perror("accept");
			exit(1);
		}
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		serve(connection);
		close(connection);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	static int listener;
	char line[64];

	signal(SIGPIPE, SIG_IGN);
	address.sin_port = htons(argc > 1 ? (uint16_t)atoi(argv[1]) : 0);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128) ||
	    getsockname(listener, (struct sockaddr *)&address, &length)) {
		perror("cannot listen");
		return 1;
	}
	for (int i = 0; i < CREW; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, crew, &listener)) {
			fputs("cannot start a thread\n", stderr);
			return 1;
		}
	}
	printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
	fflush(stdout);
	while (fgets(line, sizeof line, stdin))
		;
	return 0;
}
