/* nginx: a file's Last-Modified is one second later under the first patch, two under the second. The first also has the
 * lookup in the server's hash tables anew, which the second gives back. */
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <ugraft/livepatch.h>

static unsigned char *text(unsigned char *to, const char *from, size_t length)
{
	memcpy(to, from, length);
	return to + length;
}

static unsigned char *digits(unsigned char *to, unsigned value, int count)
{
	for (int i = count; i--; value /= 10)
		to[i] = '0' + value % 10;
	return to + count;
}

/* As quick as the original, which does not use the C library for it either. */
static unsigned char *http_time(unsigned char *to, time_t time)
{
	static const char days[][5] = { "Thu,", "Fri,", "Sat,", "Sun,", "Mon,", "Tue,", "Wed," };
	static const char months[][4] = { "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb" };
	unsigned long seconds = time + VERSION, day = seconds / 86400;
	unsigned second = seconds % 86400;
	/* Years begin in March here, and days on 1 March of the year 0 (719,468 days before 1970); 146,097 days are 400 years. */
	unsigned long since = day + 719468, era = since / 146097;
	unsigned of_era = since % 146097;
	unsigned year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	unsigned of_year = of_era - (365 * year + year / 4 - year / 100);
	unsigned month = (5 * of_year + 2) / 153;

	to = text(to, days[day % 7], 4);
	*to++ = ' ';
	to = digits(to, of_year - (153 * month + 2) / 5 + 1, 2);
	*to++ = ' ';
	to = text(to, months[month], 3);
	*to++ = ' ';
	to = digits(to, year + era * 400 + (month >= 10), 4);
	*to++ = ' ';
	to = digits(to, second / 3600, 2);
	*to++ = ':';
	to = digits(to, second / 60 % 60, 2);
	*to++ = ':';
	to = digits(to, second % 60, 2);
	return text(to, " GMT", 4);
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
