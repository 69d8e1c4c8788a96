/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keyholdctl does in a token itself: each piece of work in a process of its own, under the user of that
 * token's keeper (so that the keeper can read what is made), in that token's environment, and with an end to
 * waiting. A vendor's library never gets into keyholdctl.
 */
#ifndef KEYHOLD_CTL_TOKENWORK_H
#define KEYHOLD_CTL_TOKENWORK_H

#include "ctl.h"

#include "../config.h"
#include <p11.h>

/*
 * In the child. session: read-write and logged in; NULL for work without a login. in and out are the work's;
 * error: CTL_ERROR_MAX bytes, empty at first; what is left there goes into the message.
 */
typedef kh_result (*ctl_token_fn)(kh_p11 *p11, kh_p11_session *session, const void *in, void *out,
                                  char *error);

typedef struct ctl_token_work {
    ctl_token_fn run;
    const void *in;
    void *out; /* out_len bytes that come back; not secret */
    size_t out_len;
    bool no_login;
    const char *what; /* "cannot set up the pool": begins the message */
    uint32_t timeout_ms;
} ctl_token_work;

/* The work's result, with ctl->error set when it is not KH_OK. */
KH_MUST_USE kh_result ctl_token_do(ctl_run *ctl, const kh_config *config, const kh_config_token *token,
                                   const ctl_token_work *work);

#endif
