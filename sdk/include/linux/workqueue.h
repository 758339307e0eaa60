/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * linux/workqueue.h: work that another thread does, at once or after a time. Each has a thread of its own while it is under way; it is
 * for target modules, which are libraries, and not for patches, whose code must not run on when they are unloaded.
 */
#ifndef UGRAFT_LINUX_WORKQUEUE_H
#define UGRAFT_LINUX_WORKQUEUE_H

#include <errno.h>
#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>

struct work_struct;
typedef void (*work_func_t)(struct work_struct *work);

struct work_struct {
	work_func_t func;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct timespec due;
	pthread_t thread;
	/* Waits for its time; is under way; is to be left undone; has a thread, and somebody waits for the end of that. */
	bool pending, running, cancelled, started, joined;
};

struct delayed_work {
	struct work_struct work;
};

#define UGRAFT_WORK(function)                                                                         \
	{ .func = (function), .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER }
#define DECLARE_WORK(name, function) struct work_struct name = UGRAFT_WORK(function)
#define DECLARE_DELAYED_WORK(name, function) struct delayed_work name = { UGRAFT_WORK(function) }
#define INIT_WORK(at, function) (*(at) = (struct work_struct)UGRAFT_WORK(function))
#define INIT_DELAYED_WORK(at, function) INIT_WORK(&(at)->work, function)

static inline struct delayed_work *to_delayed_work(struct work_struct *work)
{
	return container_of(work, struct delayed_work, work);
}

/* Internal. */
static void *ugraft_do_work(void *argument) __attribute__((__unused__));
static void *ugraft_do_work(void *argument)
{
	struct work_struct *work = (struct work_struct *)argument;

	pthread_mutex_lock(&work->lock);
	do {
		while (!work->cancelled &&
		       pthread_cond_timedwait(&work->changed, &work->lock, &work->due) != ETIMEDOUT)
			;
		work->pending = false;
		if (!work->cancelled) {
			pthread_mutex_unlock(&work->lock);
			work->func(work);
			pthread_mutex_lock(&work->lock);
		}
		/* It may have asked for itself again. */
	} while (work->pending && !work->cancelled);
	work->pending = work->running = work->cancelled = false;
	pthread_mutex_unlock(&work->lock);
	return NULL;
}

/* Internal. Waits, with the lock held, until no thread runs the code of this file for it any more. */
static inline void ugraft_end_work(struct work_struct *work)
{
	while (work->started) {
		if (work->joined) {
			pthread_cond_wait(&work->changed, &work->lock);
			continue;
		}
		work->joined = true;
		pthread_mutex_unlock(&work->lock);
		pthread_join(work->thread, NULL);
		pthread_mutex_lock(&work->lock);
		work->started = work->joined = false;
		pthread_cond_broadcast(&work->changed);
	}
}

/* Internal. */
static inline bool ugraft_schedule(struct work_struct *work, unsigned long delay)
{
	bool queued = false;

	pthread_mutex_lock(&work->lock);
	if (!work->running)
		ugraft_end_work(work);
	if (!work->pending && !work->cancelled) {
		clock_gettime(CLOCK_REALTIME, &work->due);
		work->due.tv_sec += (time_t)(delay / HZ);
		work->due.tv_nsec += (long)(delay % HZ) * (1000000000L / HZ);
		if (work->due.tv_nsec >= 1000000000L) {
			work->due.tv_nsec -= 1000000000L;
			work->due.tv_sec++;
		}
		queued = work->pending = true;
		if (!work->running) {
			work->running = !pthread_create(&work->thread, NULL, ugraft_do_work, work);
			queued = work->pending = work->started = work->running;
		}
	}
	pthread_mutex_unlock(&work->lock);
	return queued;
}

/* False where it is waiting to be done already. */
static inline bool schedule_work(struct work_struct *work)
{
	return ugraft_schedule(work, 0);
}

static inline bool schedule_delayed_work(struct delayed_work *work, unsigned long delay)
{
	return ugraft_schedule(&work->work, delay);
}

/* Waits until it is done. Whether there was anything to wait for. */
static inline bool flush_work(struct work_struct *work)
{
	bool was;

	pthread_mutex_lock(&work->lock);
	was = work->running;
	ugraft_end_work(work);
	pthread_mutex_unlock(&work->lock);
	return was;
}

static inline bool flush_delayed_work(struct delayed_work *work)
{
	pthread_mutex_lock(&work->work.lock);
	clock_gettime(CLOCK_REALTIME, &work->work.due);
	pthread_cond_broadcast(&work->work.changed);
	pthread_mutex_unlock(&work->work.lock);
	return flush_work(&work->work);
}

/* Has it not be done if it has not begun, and waits for it if it has. Whether it was waiting to be done. */
static inline bool cancel_work_sync(struct work_struct *work)
{
	bool was;

	pthread_mutex_lock(&work->lock);
	was = work->pending;
	work->cancelled = work->running;
	pthread_cond_broadcast(&work->changed);
	ugraft_end_work(work);
	pthread_mutex_unlock(&work->lock);
	return was;
}

static inline bool cancel_delayed_work_sync(struct delayed_work *work)
{
	return cancel_work_sync(&work->work);
}

#endif /* UGRAFT_LINUX_WORKQUEUE_H */
