/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pin: the public import key of the store as keyholdctl init saw it, in import.pub beside the
 * configuration. Keys are sealed only to the pinned key, so an agent's front that lies about the import key
 * gets nothing. The file holds one line: "keyhold-import-1 HEX(32 bytes)".
 */
#ifndef KEYHOLD_CTL_PIN_H
#define KEYHOLD_CTL_PIN_H

#include "ctl.h"

#include <keyhold/import.h>

#define PIN_FILE "import.pub"
#define PIN_LINE_MAX 96

/* The line with its newline, zero-terminated. */
void pin_format(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], char line[PIN_LINE_MAX]);
/* KH_E_MALFORMED: not such a line. */
KH_MUST_USE kh_result pin_parse(const char *text, size_t len, uint8_t import_public[KH_IMPORT_PUBLIC_LEN]);
/* From the file. Error set. */
KH_MUST_USE kh_result pin_load(const char *path, uint8_t import_public[KH_IMPORT_PUBLIC_LEN],
                               ctl_error *error);
/*
 * Compares the agent's import key with the pin: --pin (a file or "SHA256:…"), else import.pub beside the
 * configuration. KH_E_MISMATCH: another key. Error set.
 */
KH_MUST_USE kh_result pin_check(ctl_run *ctl, const uint8_t import_public[KH_IMPORT_PUBLIC_LEN]);

#endif
