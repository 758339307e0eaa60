/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ugraft/shadow.h: data that a patch attaches to data of the program, whose layout it must not change; and the states of
 * patches. The kernel's functions, with the kernel's arguments.
 *
 * A shadow variable is known by the address of what it belongs to and a number. It is there until it is freed, whichever patches come
 * and go, or the last patch is unloaded. Its memory is not the program's malloc's, and 16-aligned.
 * May be called from everywhere but signal handlers, and but constructors and destructors of shadow variables.
 */
#ifndef UGRAFT_SHADOW_H
#define UGRAFT_SHADOW_H

#include <ugraft/livepatch.h>

#ifdef __cplusplus
extern "C" {
#endif

/* There for the kernel's sake, and without effect. */
typedef unsigned int gfp_t;
#define GFP_KERNEL ((gfp_t)0)
#define GFP_ATOMIC ((gfp_t)0)
#define GFP_NOWAIT ((gfp_t)0)

/* Initializes a new variable, which is all zeros. Anything but 0 leaves it unmade. */
typedef int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data);
typedef void (*klp_shadow_dtor_t)(void *obj, void *shadow_data);

/* The variable, or NULL. */
void *klp_shadow_get(void *obj, unsigned long id);
/* A new variable; NULL where there is one already, no memory, or where the constructor refuses. */
void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, gfp_t flags, klp_shadow_ctor_t ctor, void *ctor_data);
/* The variable, which is made where there is none. */
void *klp_shadow_get_or_alloc(void *obj, unsigned long id, size_t size, gfp_t flags, klp_shadow_ctor_t ctor,
			      void *ctor_data);
/* Frees the variable, if there is one. */
void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor);
/* Frees all variables of that number. */
void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor);

/* The patch's own state of that number, or NULL. */
struct klp_state *klp_get_state(struct klp_patch *patch, unsigned long id);
/* The state of that number of the newest patch below; for callbacks only. */
struct klp_state *klp_get_prev_state(unsigned long id);

#ifdef __cplusplus
}
#endif

#endif /* UGRAFT_SHADOW_H */
