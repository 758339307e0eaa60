/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/list.h: doubly linked lists through a member, under the kernel's names. */
#ifndef UGRAFT_LINUX_LIST_H
#define UGRAFT_LINUX_LIST_H

#include <linux/kernel.h>
#include <stdbool.h>
#include <stddef.h>

struct list_head {
	struct list_head *next, *prev;
};

#define LIST_HEAD_INIT(name) { &(name), &(name) }
#define LIST_HEAD(name) struct list_head name = LIST_HEAD_INIT(name)

static inline void INIT_LIST_HEAD(struct list_head *list)
{
	list->next = list->prev = list;
}

/* Links `entry` in behind `where`. */
static inline void list_add(struct list_head *entry, struct list_head *where)
{
	entry->prev = where;
	entry->next = where->next;
	where->next->prev = entry;
	where->next = entry;
}

/* Links `entry` in before `where`: at the end, if that is the head. */
static inline void list_add_tail(struct list_head *entry, struct list_head *where)
{
	list_add(entry, where->prev);
}

static inline void list_del(struct list_head *entry)
{
	entry->prev->next = entry->next;
	entry->next->prev = entry->prev;
	entry->next = entry->prev = NULL;
}

static inline void list_del_init(struct list_head *entry)
{
	list_del(entry);
	INIT_LIST_HEAD(entry);
}

static inline void list_move(struct list_head *entry, struct list_head *where)
{
	list_del(entry);
	list_add(entry, where);
}

static inline void list_move_tail(struct list_head *entry, struct list_head *where)
{
	list_del(entry);
	list_add_tail(entry, where);
}

static inline bool list_empty(const struct list_head *head)
{
	return head->next == head;
}

#define list_entry(pointer, type, member) container_of(pointer, type, member)
#define list_first_entry(head, type, member) list_entry((head)->next, type, member)
#define list_last_entry(head, type, member) list_entry((head)->prev, type, member)
#define list_next_entry(at, member) list_entry((at)->member.next, __typeof__(*(at)), member)
#define list_prev_entry(at, member) list_entry((at)->member.prev, __typeof__(*(at)), member)
#define list_entry_is_head(at, head, member) (&(at)->member == (head))

#define list_for_each(at, head) for (at = (head)->next; at != (head); at = at->next)
#define list_for_each_safe(at, after, head)                                                           \
	for (at = (head)->next, after = at->next; at != (head); at = after, after = at->next)
#define list_for_each_entry(at, head, member)                                                         \
	for (at = list_first_entry(head, __typeof__(*at), member); !list_entry_is_head(at, head, member); \
	     at = list_next_entry(at, member))
#define list_for_each_entry_reverse(at, head, member)                                                 \
	for (at = list_last_entry(head, __typeof__(*at), member); !list_entry_is_head(at, head, member); \
	     at = list_prev_entry(at, member))
#define list_for_each_entry_safe(at, after, head, member)                                             \
	for (at = list_first_entry(head, __typeof__(*at), member), after = list_next_entry(at, member); \
	     !list_entry_is_head(at, head, member); at = after, after = list_next_entry(after, member))

#endif /* UGRAFT_LINUX_LIST_H */
