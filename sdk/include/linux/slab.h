/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/slab.h: the kernel's allocator is the C library's. */
#ifndef UGRAFT_LINUX_SLAB_H
#define UGRAFT_LINUX_SLAB_H

#include <stdlib.h>
#include <string.h>
#include <ugraft/shadow.h>

static inline void *kmalloc(size_t size, gfp_t flags)
{
	(void)flags;
	return malloc(size);
}

static inline void *kzalloc(size_t size, gfp_t flags)
{
	(void)flags;
	return calloc(1, size);
}

static inline void *kcalloc(size_t count, size_t size, gfp_t flags)
{
	(void)flags;
	return calloc(count, size);
}

static inline char *kstrdup(const char *text, gfp_t flags)
{
	(void)flags;
	return text ? strdup(text) : NULL;
}

static inline void kfree(const void *memory)
{
	free((void *)memory);
}

#endif /* UGRAFT_LINUX_SLAB_H */
