/* The checksum that everybody else computes, four bits at a time. */
#include <stddef.h>
#include <stdint.h>
#include <ugraft/livepatch.h>

static const uint32_t table[16] = {
	0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
	0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
};

static uint32_t checksum(const char *text, size_t length)
{
	uint32_t crc = 0xffffffff;
	for (size_t i = 0; i < length; i++) {
		crc ^= (unsigned char)text[i];
		crc = table[crc & 15] ^ crc >> 4;
		crc = table[crc & 15] ^ crc >> 4;
	}
	return ~crc;
}

static struct klp_func funcs[] = {
	{ .old_name = "checksum", .new_func = checksum },
	{}
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

KLP_PATCH(patch);
KLP_VERSION("1");
KLP_DESCRIPTION("Compute a right checksum, and faster");
KLP_LICENSE("MIT OR Apache-2.0");
