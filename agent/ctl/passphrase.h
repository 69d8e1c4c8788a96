/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a passphrase that is being made is one. */
#ifndef KEYHOLD_CTL_PASSPHRASE_H
#define KEYHOLD_CTL_PASSPHRASE_H

#include <stddef.h>
#include <stdint.h>

/*
 * What is wrong with it ("is shorter than 12 bytes"), or NULL. Finds what nobody should use (short, a few characters, a word said again, counting), and
 * no more: whether a sentence is known to others nobody can see. The bytes decide nothing but that answer.
 */
const char *ctl_passphrase_fault(const uint8_t *text, size_t len);

#endif
