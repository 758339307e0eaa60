/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * linux/kernel.h: a few of the kernel's conveniences, behind what the C library's own <linux/kernel.h> has. Some system
 * headers include this one, so it brings nothing that a program may have, too, under another meaning.
 */
#include_next <linux/kernel.h>
#ifndef UGRAFT_LINUX_KERNEL_H
#define UGRAFT_LINUX_KERNEL_H

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif
#ifndef container_of
#define container_of(pointer, type, member) ((type *)((char *)(pointer) - __builtin_offsetof(type, member)))
#endif
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif
#ifndef __maybe_unused
#define __maybe_unused __attribute__((__unused__))
#endif
#ifndef READ_ONCE
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))
#endif
#endif /* UGRAFT_LINUX_KERNEL_H */
