/* SPDX-License-Identifier: Apache-2.0 */
/* Real SoftHSM tokens for tests, in a directory of the test's own. */
#ifndef KH_P11_RIG_H
#define KH_P11_RIG_H

#include "p11.h"

#define RIG_PIN "1234"

/* The module's path; NULL (and says so): softhsm2 is not installed. */
const char *rig_softhsm(void);
/* Makes the directory, its configuration and SOFTHSM2_CONF, once. */
void rig_directory(void);
/* An empty token with that label. */
void rig_token(const char *label);
/* Opens and logs in. module NULL: SoftHSM's. */
kh_p11 *rig_open(const char *module, const char *label);
/* A symbol of SoftHSM's, for tests that speak PKCS#11 themselves. */
void *rig_symbol(const char *name);
/* Removes the directory. */
void rig_clean(void);
/* Sets the shim's environment, once; then another control file in place of the one before, at once. */
void rig_rules(const char *text);
/* A locator with that CKA_ID byte repeated, and a label. */
kh_p11_locator rig_locator(uint8_t id, const char *label);
/* Verifies with OpenSSL what was signed. */
bool rig_verify(const uint8_t *spki, size_t spki_len, uint32_t scheme, const uint8_t *message, size_t len,
                const uint8_t *signature, size_t signature_len);

#endif
