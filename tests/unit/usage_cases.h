/* SPDX-License-Identifier: Apache-2.0 */
/*
 * M8: what a key's usage lets through, as a list of questions and answers. test_usage.c asks the pure
 * function, and test_keeper_usage.c a real keeper over a real ring, as a front that was taken over would.
 */
#ifndef KEYHOLD_TESTS_USAGE_CASES_H
#define KEYHOLD_TESTS_USAGE_CASES_H

#include <keyhold/types.h>

typedef struct usage_asker {
    kh_result (*ask)(void *ctx, uint32_t usage, uint32_t key_type, uint32_t scheme, bool is_digest,
                     const uint8_t *data, size_t len);
    void *ctx;
    bool sparse;                /* of what differs by a tag alone, every 16th tag */
    bool thorough;              /* all values of a byte instead of its eight single bits */
    unsigned accepted, refused; /* counted here */
} usage_asker;

/* Each asks all questions of one form and fails the test at the first wrong answer. */
void usage_cases_tls13(usage_asker *asker);
void usage_cases_ecdhe(usage_asker *asker);
void usage_cases_dhe(usage_asker *asker);
void usage_cases_der(usage_asker *asker);
void usage_cases_tls12_client(usage_asker *asker);
void usage_cases_foreign(usage_asker *asker);
void usage_cases_sign(usage_asker *asker);

#endif
