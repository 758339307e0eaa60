/*
 * What the target, its library and the patches of the torture share.
 *
 * Two groups of functions, X and Y. All functions of a group change together, whatever the patch, and so must agree with one
 * another in every call: whoever enters a group from outside must meet one version of it until it is left. Each version of
 * each function is the body below, compiled with another VERSION, and leaves one bit of its version in the call's record.
 */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { X, Y, GROUPS };

struct worker;

/* One call from outside into a group. */
struct call {
	/* Bit N: version N of some function of the group was run. The second one by signal handlers on top of the call. */
	uint16_t mask, mask_of_handlers;
	/* Functions of the group that are running. */
	volatile int depth;
	int group;
	/* Decides which ways the functions take. */
	uint64_t salt;
	/* Run in the innermost functions: pauses, forks. NULL for none. */
	void (*hook)(struct call *);
	/* Leaves the call at once, through the frames of all its functions. NULL for never. */
	void (*leave)(struct call *);
	jmp_buf out;
	struct worker *worker;
};

/* Entered from outside. */
void x_outer(struct call *);
void y_outer(struct call *);

void x_recursive(struct call *, int);
void x_leaf(struct call *);
void lib_x_middle(struct call *, void (*)(struct call *));
void lib_x_leaf(struct call *);
void y_leaf(struct call *);
void lib_y_leaf(struct call *);

#ifdef __cplusplus
}
#endif

/* Nothing is inlined, cloned or looked through. */
#define ENTRY __attribute__((noinline, noclone, noipa))

#define BEGIN(c) ((c)->depth++, (c)->mask |= (uint16_t)(1u << VERSION))
#define END(c) ((c)->depth--)

#define X_OUTER(c)                                   \
	BEGIN(c);                                    \
	x_recursive(c, (int)((c)->salt & 3));        \
	lib_x_middle(c, x_leaf);                     \
	if ((c)->salt & 4)                           \
		x_leaf(c);                           \
	END(c);

#define X_RECURSIVE(c, n)                            \
	BEGIN(c);                                    \
	if (n > 0)                                   \
		x_recursive(c, n - 1);               \
	lib_x_leaf(c);                               \
	END(c);

#define X_LEAF(c)                                    \
	BEGIN(c);                                    \
	if ((c)->hook)                               \
		(c)->hook(c);                        \
	if ((c)->leave)                              \
		(c)->leave(c);                       \
	END(c);

#define LIB_X_MIDDLE(c, callback)                    \
	BEGIN(c);                                    \
	if ((c)->salt & 8)                           \
		callback(c);                         \
	lib_x_leaf(c);                               \
	callback(c);                                 \
	END(c);

#define LIB_X_LEAF(c)                                \
	BEGIN(c);                                    \
	END(c);

/* The functions of Y end by calling the next one, which is a jump where the compiler may make it one. */
#define Y_OUTER(c)                                   \
	BEGIN(c);                                    \
	if ((c)->salt & 16)                          \
		lib_y_leaf(c);                       \
	END(c);                                      \
	y_leaf(c);

#define Y_LEAF(c)                                    \
	BEGIN(c);                                    \
	if ((c)->hook)                               \
		(c)->hook(c);                        \
	END(c);                                      \
	lib_y_leaf(c);

#define LIB_Y_LEAF(c)                                \
	BEGIN(c);                                    \
	END(c);
