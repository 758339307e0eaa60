/*
 * Takes the place of all earlier patches at once (.replace): the checksum stays right, now eight bits at a time; the
 * price is not in it, so that fix is dropped and the original runs again.
 */
#include <stddef.h>
#include <stdint.h>
#include <ugraft/livepatch.h>

static uint32_t next(uint32_t crc, unsigned char byte)
{
	static const uint32_t low[16] = {
		0x00000000, 0x77073096, 0xee0e612c, 0x990951ba, 0x076dc419, 0x706af48f, 0xe963a535, 0x9e6495a3,
		0x0edb8832, 0x79dcb8a4, 0xe0d5e91e, 0x97d2d988, 0x09b64c2b, 0x7eb17cbd, 0xe7b82d07, 0x90bf1d91,
	};
	static const uint32_t high[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	unsigned char index = (unsigned char)(crc ^ byte);
	return low[index & 15] ^ high[index >> 4] ^ crc >> 8;
}

static uint32_t checksum(const char *text, size_t length)
{
	uint32_t crc = 0xffffffff;
	for (size_t i = 0; i < length; i++)
		crc = next(crc, (unsigned char)text[i]);
	return ~crc;
}

static struct klp_func funcs[] = {
	{ .old_name = "checksum", .new_func = checksum },
	{}
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .replace = true };

KLP_PATCH(patch);
KLP_VERSION("2");
KLP_DESCRIPTION("The checksum only; replaces all earlier patches");
KLP_LICENSE("MIT OR Apache-2.0");
