/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* linux/moduleparam.h: see <ugraft/module.h>. */
#ifndef UGRAFT_LINUX_MODULEPARAM_H
#define UGRAFT_LINUX_MODULEPARAM_H
#include <ugraft/module.h>
#endif
