/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of the misbehaving module share; README.md says what its control file can say. */
#ifndef KH_SHIM_H
#define KH_SHIM_H

#include <p11-kit/pkcs11.h>
#include <stdbool.h>

#define SHIM_LABEL_MAX 128

/* What is to happen to one call. */
typedef struct shim_action {
    long delay_us;
    CK_RV rv;    /* CKR_OK: none */
    long length; /* added to the answer's */
    char count_file[256];
} shim_action;

/* Decides what happens to this call, and delays, hangs or crashes it. label: of the key, or "". */
shim_action shim_before(const char *function, const char *label);
/* Appends to the count file, if the action has one. */
void shim_after(const shim_action *action, const char *function, CK_RV rv);
/* Whether the token is gone; looks at the control file, the next two do not. */
bool shim_token_gone(void);
/* Whether the token is said not to have that mechanism. */
bool shim_hides(CK_MECHANISM_TYPE type);
/* How often sessions were lost so far. */
unsigned long shim_epoch(void);
/* How often the login alone was. */
unsigned long shim_logouts(void);
/* Whether a rule asks for labels: only then they are read. */
bool shim_wants_labels(void);

#endif
