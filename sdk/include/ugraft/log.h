/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ugraft/log.h: messages of a patch in the log that `ugraft log` prints, with the kernel's names.
 *
 *	pr_info("took over %d connections\n", count);
 *
 * Formats are printf's without floating point. A message is cut at 480 bytes; the last 128 are kept. May be called from
 * everywhere: it takes no lock and allocates nothing.
 */
#ifndef UGRAFT_LOG_H
#define UGRAFT_LOG_H

#include <stdarg.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KERN_SOH "\001"
#define KERN_EMERG KERN_SOH "0"
#define KERN_ALERT KERN_SOH "1"
#define KERN_CRIT KERN_SOH "2"
#define KERN_ERR KERN_SOH "3"
#define KERN_WARNING KERN_SOH "4"
#define KERN_NOTICE KERN_SOH "5"
#define KERN_INFO KERN_SOH "6"
#define KERN_DEBUG KERN_SOH "7"
#define KERN_DEFAULT ""
#define KERN_CONT KERN_SOH "c"

/* Internal. Where the format has the byte 2, the log puts the name: a file's, without directory and ending. */
int ugraft_vprintk(const char *format, va_list args, const char *name)
#ifdef UGRAFT_LOG_MAY_BE_MISSING
	__attribute__((__weak__))
#endif
	;


static int printk(const char *format, ...) __attribute__((__unused__, __noinline__, __format__(__printf__, 1, 2)));
static int printk(const char *format, ...)
{
	va_list args;
	int length;

	va_start(args, format);
#ifdef UGRAFT_LOG_MAY_BE_MISSING
	if (!ugraft_vprintk) {
		const char *text = format[0] == '\001' && format[1] ? format + 2 : format;
		const char *slash = strrchr(__BASE_FILE__, '/'), *name = slash ? slash + 1 : __BASE_FILE__;

		if (text[0] == '\002') {
			fprintf(stderr, "%.*s", (int)strcspn(name, "."), name);
			text++;
		}
		length = vfprintf(stderr, text, args);
		va_end(args);
		return length;
	}
#endif
	length = ugraft_vprintk(format, args, __BASE_FILE__);
	va_end(args);
	return length;
}

/* Define it before the include to have something in front of each message. */
#ifndef pr_fmt
#define pr_fmt(format) format
#endif

#define pr_emerg(format, ...) printk(KERN_EMERG pr_fmt(format), ##__VA_ARGS__)
#define pr_alert(format, ...) printk(KERN_ALERT pr_fmt(format), ##__VA_ARGS__)
#define pr_crit(format, ...) printk(KERN_CRIT pr_fmt(format), ##__VA_ARGS__)
#define pr_err(format, ...) printk(KERN_ERR pr_fmt(format), ##__VA_ARGS__)
#define pr_warn(format, ...) printk(KERN_WARNING pr_fmt(format), ##__VA_ARGS__)
#define pr_warning(format, ...) printk(KERN_WARNING pr_fmt(format), ##__VA_ARGS__)
#define pr_notice(format, ...) printk(KERN_NOTICE pr_fmt(format), ##__VA_ARGS__)
#define pr_info(format, ...) printk(KERN_INFO pr_fmt(format), ##__VA_ARGS__)
#define pr_debug(format, ...) printk(KERN_DEBUG pr_fmt(format), ##__VA_ARGS__)
#define pr_cont(format, ...) printk(KERN_CONT pr_fmt(format), ##__VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif /* UGRAFT_LOG_H */
