/* SPDX-License-Identifier: Apache-2.0 */
/*
 * K5, first half: the portable backend under valgrind, with everything secret in the prepared keys marked
 * undefined. Any branch or address that depends on a secret is then an error of memcheck ("conditional jump
 * depends on uninitialised value"). Randomness that is drawn inside (nonces, blinding) is covered too: it
 * is mixed with the key before it is used, and RSA's is multiplied into undefined values. Public are: the
 * modulus, e, results that leave, and whether a lane passed its check.
 *
 * Without valgrind it only runs the operations. `--control WHAT` leaks on purpose, to show that it would be
 * seen: WHAT is branch, address, rsa, p256, p384 or ed25519.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>
#include <valgrind/memcheck.h>

#include "private.h"

static void hide(void *mem, size_t len)
{
    (void)VALGRIND_MAKE_MEM_UNDEFINED(mem, len);
}

static void reveal(void *mem, size_t len)
{
    (void)VALGRIND_MAKE_MEM_DEFINED(mem, len);
}

static void mark_key(kh_kernel_key *key, void (*mark)(void *, size_t))
{
    if (key->kind <= KH_KERNEL_RSA4096) {
        mark(key->u.rsa.prime, sizeof(key->u.rsa.prime));
    } else if (key->kind == KH_KERNEL_ED25519) {
        for (unsigned copy = 0; copy < 2; copy++) {
            mark(key->u.ed[copy].a, sizeof(key->u.ed[copy].a));
            mark(key->u.ed[copy].prefix, sizeof(key->u.ed[copy].prefix));
        }
    } else {
        mark(key->u.ec, sizeof(key->u.ec));
    }
}

static int check(int ok, const char *what)
{
    if (!ok)
        fprintf(stderr, "test_kernels_secrets: %s failed\n", what);
    return ok ? 0 : 1;
}

static int run(kh_kernel_scratch *scratch, kh_kernel_kind kind, kh_scheme scheme, size_t fill)
{
    static uint8_t digest[32], out[KH_KERNEL_LANES][KH_SIGNATURE_MAX];
    kh_kernel_op ops[KH_KERNEL_LANES];
    EVP_PKEY *pkey = kh_sample_key(kind); /* to make a random RSA key under valgrind would take long */
    kh_kernel_key *key = NULL;
    int bad = check(kh_kernel_key_new(pkey, &key) == KH_OK, "key");
    uint64_t faults = kh_kernels_faults();

    EVP_PKEY_free(pkey);
    if (bad)
        return bad;
    for (size_t i = 0; i < fill; i++)
        ops[i] = (kh_kernel_op){.key = key,
                                .scheme = scheme,
                                .in = digest,
                                .in_len = 32,
                                .out = out[i],
                                .out_size = KH_SIGNATURE_MAX};
    mark_key(key, hide);
    bad |= check(kh_kernel_batch(scratch, key->kind, ops, fill) == KH_OK, "batch");
    mark_key(key, reveal);
    for (size_t i = 0; i < fill; i++) {
        reveal(&ops[i], sizeof(ops[i]));
        reveal(out[i], sizeof(out[i]));
        bad |= check(ops[i].result == KH_OK, "operation");
    }
    bad |= check(kh_kernels_faults() == faults, kh_kernel_kind_name(key->kind));
    kh_kernel_key_free(key);
    return bad;
}

/*
 * The controls: what memcheck must report, or the run above proves nothing. A branch on a secret bit, a
 * load from a secret address, and for each kind a batch whose results are not declared public: that the
 * lane's check is branched on must then be seen, so the mark goes all the way from the key to the result.
 */
static int control_branch(const kh_kernel_key *key)
{
    static volatile int odd; /* no compiler may store to it without the branch */

    if (key->u.ec[0].d[0] & 1)
        odd = 1;
    return odd;
}

static int control_address(const kh_kernel_key *key)
{
    static volatile int table[256];

    return table[key->u.ec[0].d[0] & 255];
}

static int control_batch(kh_kernel_kind kind, kh_scheme scheme)
{
    kh_kernel_scratch *scratch = NULL;
    int bad = check(kh_kernels_select(KH_BACKEND_PORTABLE) == KH_OK, "select");

    kh_test.valgrind = false;
    bad |= check(kh_kernel_scratch_new(&scratch) == KH_OK, "scratch");
    if (!bad)
        bad = run(scratch, kind, scheme, 2);
    kh_kernel_scratch_free(scratch);
    return bad;
}

static int control(const char *what)
{
    static const struct {
        const char *name;
        kh_kernel_kind kind;
        kh_scheme scheme;
    } batches[] = {
        {"rsa", KH_KERNEL_RSA2048, KH_RSA_PKCS1_SHA256},
        {"p256", KH_KERNEL_P256, KH_ECDSA_SHA256},
        {"p384", KH_KERNEL_P384, KH_ECDSA_SHA256},
        {"ed25519", KH_KERNEL_ED25519, KH_ED25519},
    };
    EVP_PKEY *pkey = kh_sample_key(KH_KERNEL_P256);
    kh_kernel_key *key = NULL;
    int bad = check(kh_kernel_key_new(pkey, &key) == KH_OK, "key");

    if (!bad) {
        mark_key(key, hide);
        if (strcmp(what, "branch") == 0)
            (void)control_branch(key);
        else if (strcmp(what, "address") == 0)
            (void)control_address(key);
        mark_key(key, reveal);
    }
    kh_kernel_key_free(key);
    EVP_PKEY_free(pkey);
    for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++)
        if (strcmp(what, batches[i].name) == 0)
            bad |= control_batch(batches[i].kind, batches[i].scheme);
    printf("K5 control %s: %s\n", what, bad ? "failed" : "done");
    return bad;
}

int main(int argc, char **argv)
{
    kh_kernel_scratch *scratch = NULL;
    int bad = 0;

    if (argc == 3 && strcmp(argv[1], "--control") == 0)
        return control(argv[2]);
    bad |= check(kh_kernels_select(KH_BACKEND_PORTABLE) == KH_OK, "select");
    bad |= check(kh_kernel_scratch_new(&scratch) == KH_OK, "scratch");
    kh_test.valgrind = true;
    if (!bad) {
        bad |= run(scratch, KH_KERNEL_RSA2048, KH_RSA_PKCS1_SHA256, 3);
        bad |= run(scratch, KH_KERNEL_RSA2048, KH_RSA_PSS_RSAE_SHA256, 5);
        bad |= run(scratch, KH_KERNEL_P256, KH_ECDSA_SHA256, 8);
        bad |= run(scratch, KH_KERNEL_P384, KH_ECDSA_SHA256, 8);
        bad |= run(scratch, KH_KERNEL_ED25519, KH_ED25519, 8);
    }
    kh_kernel_scratch_free(scratch);
    printf("K5 portable under valgrind (%u): %s\n", RUNNING_ON_VALGRIND, bad ? "failed" : "passed");
    return bad;
}
