/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/delay.h: sleeping. */
#ifndef UGRAFT_LINUX_DELAY_H
#define UGRAFT_LINUX_DELAY_H

#include <time.h>

static inline void msleep(unsigned int ms)
{
	struct timespec rest = { ms / 1000, ms % 1000 * 1000000L };

	while (nanosleep(&rest, &rest))
		;
}

static inline void ssleep(unsigned int seconds)
{
	msleep(seconds * 1000);
}

#endif /* UGRAFT_LINUX_DELAY_H */
