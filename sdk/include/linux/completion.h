/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/completion.h: waiting until another thread has come to a point. */
#ifndef UGRAFT_LINUX_COMPLETION_H
#define UGRAFT_LINUX_COMPLETION_H

#include <pthread.h>

struct completion {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int done;
};

#define COMPLETION_INITIALIZER(name) { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 }
#define DECLARE_COMPLETION(name) struct completion name = COMPLETION_INITIALIZER(name)
#define DECLARE_COMPLETION_ONSTACK(name) DECLARE_COMPLETION(name)

static inline void init_completion(struct completion *at)
{
	pthread_mutex_init(&at->lock, NULL);
	pthread_cond_init(&at->changed, NULL);
	at->done = 0;
}

/* Lets one thread go on that waits, or will. */
static inline void complete(struct completion *at)
{
	pthread_mutex_lock(&at->lock);
	if (at->done < ~0u)
		at->done++;
	pthread_cond_signal(&at->changed);
	pthread_mutex_unlock(&at->lock);
}

/* Lets all go on. */
static inline void complete_all(struct completion *at)
{
	pthread_mutex_lock(&at->lock);
	at->done = ~0u;
	pthread_cond_broadcast(&at->changed);
	pthread_mutex_unlock(&at->lock);
}

static inline void wait_for_completion(struct completion *at)
{
	pthread_mutex_lock(&at->lock);
	while (!at->done)
		pthread_cond_wait(&at->changed, &at->lock);
	if (at->done < ~0u)
		at->done--;
	pthread_mutex_unlock(&at->lock);
}

#endif /* UGRAFT_LINUX_COMPLETION_H */
