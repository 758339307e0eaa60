/* nginx: a file's Last-Modified is one second later under the first patch, two under the second. The first also has the
 * lookup in the server's hash tables anew, which the second gives back. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <ugraft/livepatch.h>

static unsigned char *http_time(unsigned char *to, time_t time)
{
	static const char days[][4] = { "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat" };
	static const char months[][4] = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };
	struct tm tm;
	char text[80];

	time += VERSION;
	gmtime_r(&time, &tm);
	int length = snprintf(text, sizeof text, "%s, %02d %s %4d %02d:%02d:%02d GMT", days[tm.tm_wday], tm.tm_mday,
			      months[tm.tm_mon], tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
	memcpy(to, text, length);
	return to + length;
}

/* The server's own layouts. */
struct element {
	void *value;
	unsigned short length;
	unsigned char name[1];
};
struct hash {
	struct element **buckets;
	size_t size;
};

static void *hash_find(struct hash *hash, size_t key, const unsigned char *name, size_t length)
{
	struct element *e = hash->buckets[key % hash->size];

	while (e && e->value) {
		if (e->length == length && !memcmp(e->name, name, length))
			return e->value;
		e = (struct element *)(((size_t)(e->name + e->length) + sizeof(void *) - 1) & -sizeof(void *));
	}
	return NULL;
}

static struct klp_func funcs[] = {
	{ .old_name = "ngx_http_time", .new_func = http_time },
#if VERSION == 1
	{ .old_name = "ngx_hash_find", .new_func = hash_find },
#endif
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = VERSION == 2 };
KLP_PATCH(patch);
