/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ugraft/livepatch.h: what a patch file is made of.
 *
 * A patch is one relocatable object, as a kernel livepatch module is:
 *
 *	#include <ugraft/livepatch.h>
 *
 *	static int new_answer(void) { return 42; }
 *
 *	static struct klp_func funcs[] = {
 *		{ .old_name = "answer", .new_func = (void *)new_answer },
 *		{ }
 *	};
 *	static struct klp_object objs[] = {
 *		{ .name = NULL, .funcs = funcs },	(NULL: the main executable)
 *		{ }
 *	};
 *	static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
 *	KLP_PATCH(patch);
 *	KLP_LICENSE("GPL");
 *
 *	cc -O2 -fPIC -I sdk/include -c fix.c		gives fix.o, patch "fix"
 *
 * <ugraft/log.h> has pr_info and the like, <ugraft/shadow.h> shadow variables and states.
 *
 * The structures have the names and the field order of <linux/livepatch.h>. Fields marked "internal" belong to
 * ugraft and must be zero in the file. The header is C (gnu89 and later) and C++, for gcc and clang.
 */
#ifndef UGRAFT_LIVEPATCH_H
#define UGRAFT_LIVEPATCH_H

#if !defined(__x86_64__) || defined(__ILP32__)
#error "ugraft patches are made for x86-64 with 64-bit pointers: compile without -m32 and -mx32"
#endif

#include <stddef.h>
#ifndef __cplusplus
#include <stdbool.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The layout of the structures below. A change to it is a new number, and ugraft refuses one it does not know. */
#define KLP_ABI "1"

/* What is happening to an object while a callback runs. */
enum module_state {
	MODULE_STATE_LIVE,	/* loaded and running */
	MODULE_STATE_COMING,	/* being loaded, constructors not yet run */
	MODULE_STATE_GOING,	/* being unloaded, destructors already run */
	MODULE_STATE_UNFORMED
};

/* An object of the target, as a callback sees it. */
struct module {
	enum module_state state;
	const char *name;
};

/* The patch file itself. ugraft knows it anyway; the macro lets kernel sources compile unchanged. */
#define THIS_MODULE ((struct module *)0)

/* In C++ a member that an initializer leaves out is zero without a warning. */
#if defined(__cplusplus) && __cplusplus >= 201402L
#define KLP_UNSET = {}
#else
#define KLP_UNSET
#endif

/*
 * One function to replace.
 *
 * old_name:	the function's symbol in the object; a C++ or Rust name mangled, or demangled if unique
 * new_func:	a function defined in this patch file
 * old_sympos:	which of several symbols of that name, counted from 1 in the order of the symbol table;
 *		0 says that there must be exactly one
 */
struct klp_func {
	const char *old_name KLP_UNSET;
	void *new_func KLP_UNSET;
	unsigned long old_sympos KLP_UNSET;

	unsigned long klp_reserved[3] KLP_UNSET;		/* internal */
};

struct klp_object;

/*
 * Called around the patching of an object, any of them may be missing. pre_patch may refuse by returning a negative
 * errno. post_unpatch is called only where pre_patch succeeded.
 */
struct klp_callbacks {
	int (*pre_patch)(struct klp_object *obj) KLP_UNSET;
	void (*post_patch)(struct klp_object *obj) KLP_UNSET;
	void (*pre_unpatch)(struct klp_object *obj) KLP_UNSET;
	void (*post_unpatch)(struct klp_object *obj) KLP_UNSET;
	bool post_unpatch_enabled KLP_UNSET;		/* internal */
};

/*
 * An object whose functions are replaced.
 *
 * name:	NULL for the main executable, else the shared library's SONAME or file name ("libz.so.1")
 * funcs:	ended by an empty entry
 * mod:		while a callback runs: the object and what is happening to it
 */
struct klp_object {
	const char *name KLP_UNSET;
	struct klp_func *funcs KLP_UNSET;
	struct klp_callbacks callbacks KLP_UNSET;

	struct module *mod KLP_UNSET;			/* internal */
	unsigned long klp_reserved[2] KLP_UNSET;		/* internal */
};

/* State of the system that a patch changes and a later one can take over. id 0 ends an array of them. */
struct klp_state {
	unsigned long id KLP_UNSET;
	unsigned int version KLP_UNSET;
	void *data KLP_UNSET;				/* internal */
};

/*
 * A patch: applied and removed as a whole.
 *
 * mod:		THIS_MODULE or NULL
 * objs:	ended by an empty entry
 * states:	NULL, or ended by an empty entry
 * replace:	this patch takes the place of every other one
 */
struct klp_patch {
	struct module *mod KLP_UNSET;
	struct klp_object *objs KLP_UNSET;
	struct klp_state *states KLP_UNSET;
	bool replace KLP_UNSET;

	unsigned long klp_reserved[2] KLP_UNSET;		/* internal */
};

#define KLP_JOIN2(a, b) a##b
#define KLP_JOIN(a, b) KLP_JOIN2(a, b)
#define KLP_STRING2(x) #x
#define KLP_STRING(x) KLP_STRING2(x)

/* One "key=value" string of the file's metadata, as MODULE_INFO. Read without linking; `modinfo FILE` shows them too. */
#define KLP_INFO(tag, info)                                                                           \
	static const char KLP_JOIN(klp_info_, __COUNTER__)[]                                          \
		__attribute__((__section__(".modinfo"), __used__, __aligned__(1))) = tag "=" info

/* Marks the structure to load, once per patch file: KLP_PATCH(patch); */
#define KLP_PATCH(patch)                                                                              \
	KLP_INFO("livepatch", "Y");                                                                   \
	KLP_INFO("klp_abi", KLP_ABI);                                                                 \
	static struct klp_patch *const KLP_JOIN(klp_patch_mark_, __COUNTER__)                         \
		__attribute__((__section__(".klp.patch"), __used__)) = &(patch)

/* The patch's name, if not the file's name without its ending. */
#define KLP_NAME(name) KLP_INFO("name", name)
#define KLP_VERSION(version) KLP_INFO("version", version)
#define KLP_DESCRIPTION(description) KLP_INFO("description", description)
#define KLP_LICENSE(license) KLP_INFO("license", license)

/* This patch can be enabled only while the patch of that name is. May be repeated. */
#define KLP_DEPENDS(patch_name) KLP_INFO("depends", patch_name)

/* The patch is for that build of the object only: KLP_OBJECT_BUILD_ID("libz.so.1", "8a1f..."); "exe" is the main executable. */
#define KLP_OBJECT_BUILD_ID(object, hex) KLP_INFO("build_id", object ":" hex)

/*
 * Binds a declared function or variable to a symbol of the target that it does not export:
 *
 *	extern int helper(int);
 *	KLP_SYMBOL(helper, "exe", "helper", 2);
 *
 * From here on `helper` is the second symbol of that name in the main executable. It is written into the object file in
 * the kernel's spelling, `.klp.sym.exe.helper,2`. The declared name is the patch's own affair and need not be the
 * target's. object is "exe" for the main executable, else the library's name as in klp_object; pos counts as old_sympos
 * does. In C++ the declaration must be extern "C". An object whose name has a dot but no ".so" is written in brackets: "[plugin.node]".
 */
#define KLP_SYMBOL(declared, object, symbol, pos)                                                     \
	__asm__(".set " KLP_STRING(declared) ", \".klp.sym." object "." symbol "," KLP_STRING(pos) "\"")

#ifdef __cplusplus
}
#endif

#endif /* UGRAFT_LIVEPATCH_H */
