/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/init.h: marks without meaning here. */
#ifndef UGRAFT_LINUX_INIT_H
#define UGRAFT_LINUX_INIT_H
#ifndef __init
#define __init
#define __exit
#define __initdata
#define __exitdata
#endif
#endif
