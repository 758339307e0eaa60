/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/jiffies.h: a clock of milliseconds. */
#ifndef UGRAFT_LINUX_JIFFIES_H
#define UGRAFT_LINUX_JIFFIES_H

#include <time.h>

#ifndef HZ
#define HZ 1000
#endif

static inline unsigned long ugraft_jiffies(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (unsigned long)now.tv_sec * HZ + (unsigned long)now.tv_nsec / (1000000000UL / HZ);
}

#define jiffies ugraft_jiffies()
#define msecs_to_jiffies(ms) ((unsigned long)(ms) * HZ / 1000)
#define jiffies_to_msecs(count) ((unsigned int)((unsigned long)(count) * 1000 / HZ))
#define time_after(a, b) ((long)((unsigned long)(b) - (unsigned long)(a)) < 0)
#define time_before(a, b) time_after(b, a)
#define time_after_eq(a, b) (!time_before(a, b))
#define time_before_eq(a, b) (!time_after(a, b))

#endif /* UGRAFT_LINUX_JIFFIES_H */
