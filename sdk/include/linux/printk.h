/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * linux/printk.h: messages, see <ugraft/log.h>. In a library, which has no log of ugraft's, they go to standard error.
 */
#ifndef UGRAFT_LINUX_PRINTK_H
#define UGRAFT_LINUX_PRINTK_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* The file's name without its ending, as the kernel's build gives it; the log puts it in. */
#ifndef KBUILD_MODNAME
#define KBUILD_MODNAME "\002"
#endif

#define UGRAFT_LOG_MAY_BE_MISSING
#include <ugraft/log.h>

#endif /* UGRAFT_LINUX_PRINTK_H */
