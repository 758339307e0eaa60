/* Prints where everything in the structures of the headers lies. */
#include <stdio.h>
#include <ugraft/livepatch.h>
#include <ugraft/module.h>

#define SIZE(type) printf("sizeof " #type " %zu\n", sizeof(struct type))
#define AT(type, member) printf(#type "." #member " %zu\n", offsetof(struct type, member))

int main(void)
{
	SIZE(klp_func);
	AT(klp_func, old_name);
	AT(klp_func, new_func);
	AT(klp_func, old_sympos);
	AT(klp_func, klp_reserved);
	SIZE(klp_callbacks);
	AT(klp_callbacks, pre_patch);
	AT(klp_callbacks, post_patch);
	AT(klp_callbacks, pre_unpatch);
	AT(klp_callbacks, post_unpatch);
	AT(klp_callbacks, post_unpatch_enabled);
	SIZE(klp_object);
	AT(klp_object, name);
	AT(klp_object, funcs);
	AT(klp_object, callbacks);
	AT(klp_object, mod);
	AT(klp_object, klp_reserved);
	SIZE(klp_state);
	AT(klp_state, id);
	AT(klp_state, version);
	AT(klp_state, data);
	SIZE(klp_patch);
	AT(klp_patch, mod);
	AT(klp_patch, objs);
	AT(klp_patch, states);
	AT(klp_patch, replace);
	AT(klp_patch, klp_reserved);
	SIZE(klp_param);
	AT(klp_param, name);
	AT(klp_param, type);
	AT(klp_param, variable);
	AT(klp_param, width);
	SIZE(module);
	AT(module, state);
	AT(module, name);
	return 0;
}
