/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * linux/module.h: what the source of a kernel module says about itself. A file that includes <linux/livepatch.h>, too, is a
 * patch; another one becomes a shared library, whose init and exit are its constructor and destructor.
 */
#ifndef UGRAFT_LINUX_MODULE_H
#define UGRAFT_LINUX_MODULE_H

#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <ugraft/module.h>

#ifndef noinline
#define noinline __attribute__((__noinline__))
#endif

/* For prototypes: <linux/workqueue.h> has the rest. */
struct work_struct;

#define KLP_MODULE_KIND library

#define MODULE_INFO(tag, info) KLP_INFO(#tag, info)
#define MODULE_LICENSE(license) KLP_INFO("license", license)
#define MODULE_AUTHOR(author) KLP_INFO("author", author)
#define MODULE_DESCRIPTION(description) KLP_INFO("description", description)
#define MODULE_VERSION(version) KLP_INFO("version", version)
#define MODULE_ALIAS(alias) KLP_INFO("alias", alias)

#define EXPORT_SYMBOL(symbol) extern __typeof__(symbol) symbol
#define EXPORT_SYMBOL_GPL(symbol) EXPORT_SYMBOL(symbol)

#undef module_init
#undef module_exit
#define module_init(function) KLP_JOIN(klp_init_of_, KLP_MODULE_KIND)(function)
#define module_exit(function) KLP_JOIN(klp_exit_of_, KLP_MODULE_KIND)(function)

#define klp_init_of_patch(function)                                                                   \
	static int (*const klp_module_init_function)(void)                                            \
		__attribute__((__section__(".klp.init"), __used__)) = function
#define klp_exit_of_patch(function)                                                                   \
	static void (*const klp_module_exit_function)(void)                                           \
		__attribute__((__section__(".klp.exit"), __used__)) = function
#define klp_init_of_library(function)                                                                 \
	static void __attribute__((__constructor__, __used__)) klp_module_constructor(void)           \
	{                                                                                             \
		(void)function();                                                                     \
	}                                                                                             \
	extern int klp_module_init_done
#define klp_exit_of_library(function)                                                                 \
	static void __attribute__((__destructor__, __used__)) klp_module_destructor(void)             \
	{                                                                                             \
		function();                                                                           \
	}                                                                                             \
	extern int klp_module_exit_done

#endif /* UGRAFT_LINUX_MODULE_H */
