/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RSA decryption with a key in a token: the token does the bare operation, and padding is looked at here, in constant time, since a
 * token's own unpadding answers differently for bad padding. A token without the bare operation: KH_E_UNSUPPORTED.
 */
#ifndef KEYHOLD_KEYSTORE_TOKEN_RSA_H
#define KEYHOLD_KEYSTORE_TOKEN_RSA_H

#include "token.h"

KH_MUST_USE kh_result kh_token_rsa_kx(kh_token_worker *worker, kh_token_key *key, const kh_p11_key *object, kh_token_op *op);
KH_MUST_USE kh_result kh_token_rsa_decrypt(kh_token_worker *worker, const kh_p11_key *object, kh_token_op *op);

#endif
