/* SPDX-License-Identifier: Apache-2.0 */
/* Batches through the kernels: see multibuffer.h. */
#include "multibuffer.h"
#include "kernels/kernels.h"
#include "rsakx.h"

#include <openssl/crypto.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RSA_PASS 4 /* RSA operations that fill the lanes once: both CRT halves side by side */

struct kh_multibuffer {
    kh_kernel_scratch *scratch;
    kh_kernel_op op[KH_BATCH_MAX];
    kh_tier_op *tier[KH_BATCH_MAX]; /* whose they are */
    bool usable[KH_BATCH_MAX];      /* tls-rsa-kx */
    uint8_t in[KH_BATCH_MAX][KH_SIGNATURE_MAX];
    uint8_t plain[KH_BATCH_MAX][KH_SIGNATURE_MAX];
};

uint32_t kh_multibuffer_init(bool use, bool *failed)
{
    *failed = use && kh_kernels_init() != KH_OK;
    if (!use || *failed) {
        (void)!kh_kernels_select(KH_BACKEND_OPENSSL);
    }
    return (uint32_t)kh_kernels_selected();
}

bool kh_multibuffer_gains(kh_lane lane, size_t n)
{
    static const struct {
        kh_lane lane;
        kh_kernel_kind kind;
    } table[] = {
        {KH_LANE_RSA2048, KH_KERNEL_RSA2048}, {KH_LANE_RSA3072, KH_KERNEL_RSA3072},
        {KH_LANE_RSA4096, KH_KERNEL_RSA4096}, {KH_LANE_P256, KH_KERNEL_P256},
        {KH_LANE_P384, KH_KERNEL_P384},       {KH_LANE_ED25519, KH_KERNEL_ED25519},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].lane == lane) {
            return n > 1 && kh_kernels_choose(table[i].kind, n) == KH_WAY_KERNEL;
        }
    }
    return false;
}

kh_result kh_multibuffer_new(kh_multibuffer **out)
{
    kh_multibuffer *multibuffer = calloc(1, sizeof(*multibuffer));
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (multibuffer == NULL) {
        return result;
    }
    result = kh_kernel_scratch_new(&multibuffer->scratch);
    if (result != KH_OK) {
        free(multibuffer);
        return result;
    }
    *out = multibuffer;
    return KH_OK;
}

void kh_multibuffer_free(kh_multibuffer *multibuffer)
{
    if (multibuffer == NULL) {
        return;
    }
    kh_kernel_scratch_free(multibuffer->scratch);
    OPENSSL_cleanse(multibuffer, sizeof(*multibuffer));
    free(multibuffer);
}

/* Other decryptions are rare, and OpenSSL's unpadding comes with OpenSSL's decryption. */
static bool possible(const kh_tier_op *op)
{
    return op->key->kernel != NULL && (op->kind == KH_TIER_SIGN || op->kind == KH_TIER_TLS_RSA_KX);
}

/* How many of n operations the kernels do: all, or for RSA a full pass without the rest, or none. */
static size_t share(kh_kernel_kind kind, size_t n)
{
    if (n == 0 || kh_kernels_choose(kind, n) != KH_WAY_KERNEL) {
        return 0;
    }
    if (kind <= KH_KERNEL_RSA4096 && n > RSA_PASS && n < KH_KERNEL_LANES &&
        kh_kernels_choose(kind, n - RSA_PASS) != KH_WAY_KERNEL) {
        return RSA_PASS;
    }
    return n;
}

/* What goes into a lane. False: the operation is left to OpenSSL. */
static bool prepare(kh_multibuffer *mb, size_t i, kh_digest_fn digest, void *ctx)
{
    kh_tier_op *tier = mb->tier[i];
    kh_kernel_op *op = &mb->op[i];
    size_t hash_len = kh_scheme_hash_len((int)tier->scheme);

    *op = (kh_kernel_op){.key = tier->key->kernel, .out = tier->out, .out_size = KH_SIGNATURE_MAX};
    if (tier->kind == KH_TIER_TLS_RSA_KX) {
        mb->usable[i] =
            kh_rsakx_block(tier->data, tier->len, tier->key->modulus, tier->key->modulus_len, mb->in[i]);
        op->in = mb->in[i];
        op->in_len = tier->key->modulus_len;
        op->out = mb->plain[i];
        return true;
    }
    op->scheme = (kh_scheme)tier->scheme;
    op->in = tier->data;
    op->in_len = tier->len;
    if (hash_len == 0 || tier->is_digest) {
        return true;
    }
    op->in = mb->in[i];
    op->in_len = hash_len;
    return digest(ctx, tier, hash_len, mb->in[i]);
}

/* What the kernel did not do, or did not do well, is left to OpenSSL. */
static void finish(kh_multibuffer *mb, size_t i)
{
    kh_tier_op *tier = mb->tier[i];
    const kh_kernel_op *op = &mb->op[i];
    kh_result result = op->result;
    size_t len = op->out_len;

    if (tier->kind == KH_TIER_TLS_RSA_KX) {
        if (result == KH_OK) {
            result = kh_rsakx_answer(tier->key->kx_secret, (uint16_t)tier->arg, tier->data, tier->len,
                                     mb->plain[i], tier->key->modulus_len, mb->usable[i], tier->out);
            len = KH_PREMASTER_LEN;
        }
        OPENSSL_cleanse(mb->plain[i], sizeof(mb->plain[i]));
    }
    if (result == KH_OK) {
        tier->out_len = len;
        tier->result = KH_OK;
        tier->by_kernel = true;
    }
}

/* The operations that go together: of the kind of the first that is possible at all. */
static size_t gather(kh_multibuffer *mb, kh_tier_op *const ops[], size_t n, kh_kernel_kind *kind)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++) {
        if (!possible(ops[i])) {
            continue;
        }
        if (count == 0) {
            *kind = kh_kernel_key_kind(ops[i]->key->kernel);
        }
        if (kh_kernel_key_kind(ops[i]->key->kernel) == *kind) {
            mb->tier[count++] = ops[i];
        }
    }
    return count;
}

void kh_multibuffer_batch(kh_multibuffer *mb, kh_tier_op *const ops[], size_t n, kh_digest_fn digest,
                          void *ctx)
{
    kh_kernel_kind kind = KH_KERNEL_RSA2048;
    size_t count = gather(mb, ops, n, &kind), ready = 0;

    count = share(kind, count);
    for (size_t i = 0; i < count; i++) {
        mb->tier[ready] = mb->tier[i];
        ready += prepare(mb, ready, digest, ctx);
    }
    if (ready == 0 || kh_kernel_batch(mb->scratch, kind, mb->op, ready) != KH_OK) {
        return;
    }
    for (size_t i = 0; i < ready; i++) {
        finish(mb, i);
    }
}

uint64_t kh_multibuffer_new_faults(void)
{
    static _Atomic uint64_t told;
    uint64_t now = kh_kernels_faults(), before = atomic_load(&told);

    while (before < now && !atomic_compare_exchange_weak(&told, &before, now)) {
    }
    return before < now ? now - before : 0;
}
