/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The software tier's way through the batch kernels (kernels/kernels.h): which operations of a batch they do,
 * what goes in, and what comes out. What they do not do is left to OpenSSL.
 */
#ifndef KEYHOLD_KEYSTORE_MULTIBUFFER_H
#define KEYHOLD_KEYSTORE_MULTIBUFFER_H

#include "software.h"

/*
 * Once in a process, before the first key is prepared: selects the kernels for this CPU, or OpenSSL when
 * `use` is false or they fail (*failed). Returns the number for kh_keeper_stats.kernels.
 */
uint32_t kh_multibuffer_init(bool use, bool *failed);

/* Whether n operations of that lane, done together, take less time than one by one. */
bool kh_multibuffer_gains(kh_lane lane, size_t n);

/* What one worker keeps: scratch, inputs and plaintexts of a batch. Wiped after each use. */
typedef struct kh_multibuffer kh_multibuffer;
KH_MUST_USE kh_result kh_multibuffer_new(kh_multibuffer **multibuffer);
void kh_multibuffer_free(kh_multibuffer *multibuffer); /* NULL is fine */

/* The digest of an operation's message, hash_len bytes. Supplied by the tier, which has the contexts. */
typedef bool (*kh_digest_fn)(void *ctx, const kh_tier_op *op, size_t hash_len, uint8_t digest[64]);

/*
 * Does those of the n operations that are faster so: they have by_kernel set and their result. The others are
 * untouched; also those for which the kernels gave an error, so that OpenSSL has the last word.
 */
void kh_multibuffer_batch(kh_multibuffer *multibuffer, kh_tier_op *const ops[], size_t n, kh_digest_fn digest,
                          void *ctx);

/* Lanes whose check failed since the last call, from whatever thread; each is counted once. */
uint64_t kh_multibuffer_new_faults(void);

#endif
