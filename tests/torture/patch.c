/* One version of the functions: VERSION says which, COVERS_X and COVERS_Y of which groups, REPLACE whether it replaces. */
#include <ugraft/livepatch.h>

#include "torture.h"

#if COVERS_X
static void new_x_outer(struct call *c) { X_OUTER(c) }
static void new_x_recursive(struct call *c, int n) { X_RECURSIVE(c, n) }
static void new_x_leaf(struct call *c) { X_LEAF(c) }
static void new_lib_x_middle(struct call *c, void (*callback)(struct call *)) { LIB_X_MIDDLE(c, callback) }
static void new_lib_x_leaf(struct call *c) { LIB_X_LEAF(c) }
#endif
#if COVERS_Y
static void new_y_outer(struct call *c) { Y_OUTER(c) }
static void new_y_leaf(struct call *c) { Y_LEAF(c) }
static void new_lib_y_leaf(struct call *c) { LIB_Y_LEAF(c) }
#endif

static struct klp_func in_program[] = {
#if COVERS_X
	{ .old_name = "x_outer", .new_func = (void *)new_x_outer },
	{ .old_name = "x_recursive", .new_func = (void *)new_x_recursive },
	{ .old_name = "x_leaf", .new_func = (void *)new_x_leaf },
#endif
#if COVERS_Y
	{ .old_name = "y_outer", .new_func = (void *)new_y_outer },
	{ .old_name = "y_leaf", .new_func = (void *)new_y_leaf },
#endif
	{}
};
static struct klp_func in_library[] = {
#if COVERS_X
	{ .old_name = "lib_x_middle", .new_func = (void *)new_lib_x_middle },
	{ .old_name = "lib_x_leaf", .new_func = (void *)new_lib_x_leaf },
#endif
#if COVERS_Y
	{ .old_name = "lib_y_leaf", .new_func = (void *)new_lib_y_leaf },
#endif
	{}
};
static struct klp_object objs[] = {
	{ .funcs = in_program },
	{ .name = "libtorture.so", .funcs = in_library },
	{}
};
static struct klp_patch patch = { .objs = objs, .replace = REPLACE };
KLP_PATCH(patch);
