/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ugraft/module.h: parameters of a patch, and functions that run when it is loaded and before it is unloaded, with the kernel's
 * names.
 *
 *	static int limit = 10;
 *	module_param(limit, int, 0644);
 *
 *	ugraft load fix.o limit=20 --pid PID
 *	ugraft param fix limit --pid PID
 *	ugraft param fix limit=30 --pid PID
 *
 * Types are bool, invbool, byte, short, ushort, int, uint, long, ulong and charp. A value that is set while the patch is loaded
 * is one store; the last argument, a mode of files, is without meaning.
 */
#ifndef UGRAFT_MODULE_H
#define UGRAFT_MODULE_H

#include <ugraft/livepatch.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a parameter is. Internal. */
struct klp_param {
	const char *name;
	const char *type;
	void *variable;
	unsigned long width;
};

#define module_param_named(param_name, variable, type, mode)                                          \
	static const struct klp_param KLP_JOIN(klp_param_, __COUNTER__)                               \
		__attribute__((__section__(".klp.param"), __used__)) = {                              \
			#param_name, #type, (void *)&variable, sizeof(variable) }

#define module_param(variable, type, mode) module_param_named(variable, variable, type, mode)
#define MODULE_PARM_DESC(variable, text) KLP_INFO("parm", #variable ":" text)

/* Runs when the patch is loaded, before it is enabled. Anything but 0 refuses. */
#define module_init(function)                                                                         \
	static int (*const KLP_JOIN(klp_init_, __COUNTER__))(void)                                    \
		__attribute__((__section__(".klp.init"), __used__)) = function
/* Runs before the patch is unloaded. */
#define module_exit(function)                                                                         \
	static void (*const KLP_JOIN(klp_exit_, __COUNTER__))(void)                                   \
		__attribute__((__section__(".klp.exit"), __used__)) = function

#ifdef __cplusplus
}
#endif

#endif /* UGRAFT_MODULE_H */
