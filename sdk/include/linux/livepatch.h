/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * linux/livepatch.h: lets the source of a kernel livepatch compile as a patch of a process.
 *
 * What is there: the structures, klp_enable_patch() in the module's init, shadow variables and states; module_param,
 * pr_info and the like by <linux/module.h>. Objects are named by their SONAME or file name.
 */
#ifndef UGRAFT_LINUX_LIVEPATCH_H
#define UGRAFT_LINUX_LIVEPATCH_H

#include <ugraft/livepatch.h>
#include <ugraft/shadow.h>
#include <linux/module.h>

/* What includes this is a patch, not a library: see module_init. */
#undef KLP_MODULE_KIND
#define KLP_MODULE_KIND patch

KLP_INFO("klp_abi", KLP_ABI);

/* A module that never comes to klp_enable_patch() is a patch of nothing, for the sake of its init and exit. */
static struct klp_object klp_no_objects[] = { { .name = NULL } };
static struct klp_patch klp_no_patch = { .objs = klp_no_objects };
static struct klp_patch *const klp_module_mark
	__attribute__((__section__(".klp.module"), __used__)) = &klp_no_patch;

/* Marks the patch, once per file. It is enabled when init has returned 0. */
#define klp_enable_patch(patch)                                                                       \
	__extension__({                                                                               \
		static struct klp_patch *const klp_patch_mark                                         \
			__attribute__((__section__(".klp.patch"), __used__)) = (patch);               \
		(void)klp_patch_mark;                                                                 \
		0;                                                                                    \
	})

#endif /* UGRAFT_LINUX_LIVEPATCH_H */
