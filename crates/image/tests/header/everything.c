#include <ugraft/livepatch.h>

/* What structures.rs of the reader says. */
#define KLP_TYPE_HOLDS(name, condition) typedef char name[(condition) ? 1 : -1]
KLP_TYPE_HOLDS(func_layout, sizeof(struct klp_func) == 48 && offsetof(struct klp_func, new_func) == 8 &&
		offsetof(struct klp_func, old_sympos) == 16 && offsetof(struct klp_func, klp_reserved) == 24);
KLP_TYPE_HOLDS(object_layout, sizeof(struct klp_object) == 80 && offsetof(struct klp_object, funcs) == 8 &&
		offsetof(struct klp_object, callbacks) == 16 && offsetof(struct klp_object, mod) == 56);
KLP_TYPE_HOLDS(callbacks_layout, sizeof(struct klp_callbacks) == 40 && offsetof(struct klp_callbacks, post_patch) == 8 &&
		offsetof(struct klp_callbacks, pre_unpatch) == 16 && offsetof(struct klp_callbacks, post_unpatch) == 24);
KLP_TYPE_HOLDS(state_layout, sizeof(struct klp_state) == 24 && offsetof(struct klp_state, version) == 8);
KLP_TYPE_HOLDS(patch_layout, sizeof(struct klp_patch) == 48 && offsetof(struct klp_patch, objs) == 8 &&
		offsetof(struct klp_patch, states) == 16 && offsetof(struct klp_patch, replace) == 24);

#ifdef __cplusplus
extern "C" {
#endif

int hidden(int x);
KLP_SYMBOL(hidden, "libz.so.1", "hidden.part.0", 2);
int new_f(int x) { return hidden(x) + 1; }
int new_g(int x) { return x + 2; }
int pre(struct klp_object *object) { return object->mod && object->mod->state == MODULE_STATE_GOING; }
void post(struct klp_object *object) { (void)object; }
void post_un(struct klp_object *object) { (void)object; }

#ifdef __cplusplus
}
#endif

static struct klp_func exe_funcs[] = {
	{ .old_name = "ns::f(int, char const*)", .new_func = (void *)new_f },
	{ .old_name = "g.constprop.0", .new_func = (void *)new_g, .old_sympos = 3 },
	{ }
};
static struct klp_func libz_funcs[] = {
	{ .old_name = "ns::f(int, char const*)", .new_func = (void *)new_f, .old_sympos = 1 },
	{ }
};
static struct klp_func no_funcs[] = { { } };
static struct klp_object objs[] = {
	{ .funcs = exe_funcs },
	{
		.name = "libz.so.1",
		.funcs = libz_funcs,
		.callbacks = { .pre_patch = pre, .post_patch = post, .post_unpatch = post_un }
	},
	{ .name = "empty.so", .funcs = no_funcs },
	{ }
};
static struct klp_state states[] = { { .id = 7, .version = 2 }, { .id = ~0ul }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .states = states, .replace = true };

KLP_PATCH(patch);
KLP_NAME("every-thing_1.0");
KLP_VERSION("1.2.3");
KLP_DESCRIPTION("All that the header offers, with é");
KLP_LICENSE("GPL");
KLP_DEPENDS("base");
KLP_DEPENDS("other,base");
KLP_OBJECT_BUILD_ID("exe", "8a1f00ff");
KLP_OBJECT_BUILD_ID("libz.so.1", "0102030405060708");
