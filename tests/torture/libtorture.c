/* The library's half of the functions that must agree. */
#include "torture.h"

#define VERSION 0

ENTRY void lib_x_middle(struct call *c, void (*callback)(struct call *)) { LIB_X_MIDDLE(c, callback) }
ENTRY void lib_x_leaf(struct call *c) { LIB_X_LEAF(c) }
ENTRY void lib_y_leaf(struct call *c) { LIB_Y_LEAF(c) }
