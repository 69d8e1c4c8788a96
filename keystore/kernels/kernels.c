/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The batch: checks and encodes each operation, fills the lanes, runs the selected backend's kernel, writes
 * the results of the lanes that passed their check, has OpenSSL do the others again, and wipes what is left.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "private.h"

/* Deeper than any kernel's stack frames with those of libcrypto below them. */
#define STACK_WIPE_LEN (32 * 1024)

static const kh_backend_table *const backends[] = {
    [KH_BACKEND_OPENSSL] = NULL,
    [KH_BACKEND_PORTABLE] = &kh_backend_portable,
#ifdef KH_HAVE_IFMA
    [KH_BACKEND_IFMA] = &kh_backend_ifma,
#else
    [KH_BACKEND_IFMA] = NULL,
#endif
};

static bool built[sizeof(backends) / sizeof(backends[0])];
static kh_kernel_backend selected = KH_BACKEND_OPENSSL;
static atomic_uint_fast64_t faults;

const char *kh_kernel_kind_name(int kind)
{
    static const char *const names[] = {
#define KH_X(constant, name) [constant] = name,
        KH_KERNEL_KINDS(KH_X)
#undef KH_X
    };

    return kind >= 0 && kind < KH_KERNEL_KIND_COUNT ? names[kind] : "unknown";
}

bool kh_kernels_available(void)
{
#ifdef KH_HAVE_IFMA
    /* The compiler's test asks XGETBV too, whether the system saves the registers. */
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512ifma");
#else
    return false;
#endif
}

kh_result kh_kernels_select(kh_kernel_backend backend)
{
    kh_result rc = KH_OK;

    if ((unsigned)backend >= sizeof(backends) / sizeof(backends[0]) ||
        (backend != KH_BACKEND_OPENSSL && backends[backend] == NULL) ||
        (backend == KH_BACKEND_IFMA && !kh_kernels_available()))
        return KH_E_UNSUPPORTED;
    if (backends[backend] != NULL && !built[backend]) {
        rc = backends[backend]->init();
        backends[backend]->wipe_registers();
        if (rc != KH_OK)
            return rc;
        built[backend] = true;
    }
    selected = backend;
    kh_ways_reset();
    return KH_OK;
}

kh_kernel_backend kh_kernels_selected(void)
{
    return selected;
}

kh_result kh_kernels_init(void)
{
    kh_result rc = kh_kernels_select(kh_kernels_available() ? KH_BACKEND_IFMA : KH_BACKEND_OPENSSL);

    if (rc == KH_OK && selected != KH_BACKEND_OPENSSL)
        rc = kh_self_test();
    if (rc != KH_OK)
        selected = KH_BACKEND_OPENSSL;
    return rc;
}

uint64_t kh_kernels_faults(void)
{
    return atomic_load_explicit(&faults, memory_order_relaxed);
}

static size_t work_len(kh_kernel_kind kind)
{
    switch (kind) {
    case KH_KERNEL_P256:
        return kh_p256_work_len();
    case KH_KERNEL_P384:
        return kh_p384_work_len();
    case KH_KERNEL_ED25519:
        return kh_ed25519_work_len();
    default:
        return kh_rsa_work_len();
    }
}

kh_result kh_kernel_scratch_new(kh_kernel_scratch **out)
{
    kh_kernel_scratch *scratch = OPENSSL_zalloc(sizeof(*scratch));

    *out = NULL;
    if (scratch == NULL)
        return KH_E_MEMORY;
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++)
        if (work_len(kind) > scratch->work_len)
            scratch->work_len = work_len(kind);
    scratch->work_len = (scratch->work_len + 63) & ~(size_t)63;
    scratch->work = aligned_alloc(64, scratch->work_len);
    if (scratch->work == NULL) {
        kh_kernel_scratch_free(scratch);
        return KH_E_MEMORY;
    }
    memset(scratch->work, 0, scratch->work_len);
    *out = scratch;
    return KH_OK;
}

void kh_kernel_scratch_free(kh_kernel_scratch *scratch)
{
    if (scratch == NULL)
        return;
    if (scratch->work != NULL)
        OPENSSL_cleanse(scratch->work, scratch->work_len);
    free(scratch->work);
    OPENSSL_clear_free(scratch, sizeof(*scratch));
}

void kh_kernel_scratch_deterministic(kh_kernel_scratch *scratch, bool on)
{
    scratch->deterministic = on;
}

static bool is_rsa(kh_kernel_kind kind)
{
    return kind == KH_KERNEL_RSA2048 || kind == KH_KERNEL_RSA3072 || kind == KH_KERNEL_RSA4096;
}

static kh_key_type key_type(kh_kernel_kind kind)
{
    static const kh_key_type types[] = {
        [KH_KERNEL_RSA2048] = KH_KEY_RSA, [KH_KERNEL_RSA3072] = KH_KEY_RSA,
        [KH_KERNEL_RSA4096] = KH_KEY_RSA, [KH_KERNEL_P256] = KH_KEY_P256,
        [KH_KERNEL_P384] = KH_KEY_P384,   [KH_KERNEL_ED25519] = KH_KEY_ED25519,
    };

    return types[kind];
}

/* A raw block is below the modulus. Both are public. */
static bool block_below_modulus(const kh_rsa_key *key, const uint8_t *block)
{
    uint64_t limbs[2 * KH_RSA_MAX];

    kh_limbs_from_bytes(limbs, 2 * key->len, block, key->bytes);
    for (size_t i = 2 * key->len; i-- > 0;)
        if (limbs[i] != key->n[i])
            return limbs[i] < key->n[i];
    return false;
}

/* What length in bytes and scheme the operation must have, per key type: hash_len 0 is "any". */
static bool scheme_fits(kh_scheme scheme, kh_kernel_kind kind, size_t *hash_len)
{
    static const struct {
        kh_scheme scheme;
        uint8_t hash_len;
        kh_key_type type; /* P256: any curve */
    } table[] = {
#define KH_X(constant, code, name, type, hash_len) {constant, hash_len, type},
        KH_SCHEMES(KH_X)
#undef KH_X
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        kh_key_type type = key_type(kind);

        if (table[i].scheme != scheme)
            continue;
        *hash_len = table[i].hash_len;
        if (table[i].type == KH_KEY_RSA || table[i].type == KH_KEY_ED25519)
            return type == table[i].type;
        return type == KH_KEY_P256 || type == KH_KEY_P384;
    }
    return false;
}

/* Checks an operation and fills its lane. */
static kh_result fill_lane(kh_lane *lane, kh_kernel_kind kind, kh_kernel_op *op)
{
    size_t hash_len = 0;

    lane->op = op;
    lane->key = op->key;
    lane->scheme = op->scheme;
    lane->in = op->in;
    lane->in_len = op->in_len;
    if (op->key == NULL || op->key->kind != kind || op->out_size < op->key->out_max)
        return KH_E_INVALID;
    if (is_rsa(kind) && op->scheme == KH_SCHEME_NONE) {
        if (op->in_len != op->key->u.rsa.bytes || !block_below_modulus(&op->key->u.rsa, op->in))
            return KH_E_INVALID;
        return KH_OK;
    }
    if (!scheme_fits(op->scheme, kind, &hash_len))
        return KH_E_SCHEME;
    if (kind == KH_KERNEL_ED25519)
        return op->in_len <= KH_MESSAGE_MAX ? KH_OK : KH_E_TOO_LARGE;
    if (op->in_len != hash_len)
        return KH_E_INVALID;
    if (!is_rsa(kind))
        return KH_OK;
    lane->in = lane->block;
    lane->in_len = op->key->u.rsa.bytes;
    return kh_rsa_encode(op->scheme, op->in, op->key->u.rsa.bits, lane->block, lane->in_len);
}

/* Hands a good lane's result to its operation. */
static void take_result(kh_lane *lane)
{
    kh_kernel_op *op = lane->op;

    switch (lane->key->kind) {
    case KH_KERNEL_P256:
        op->out_len = kh_der_signature(op->out, lane->out, 32);
        break;
    case KH_KERNEL_P384:
        op->out_len = kh_der_signature(op->out, lane->out, 48);
        break;
    case KH_KERNEL_RSA2048:
    case KH_KERNEL_RSA3072:
    case KH_KERNEL_RSA4096:
    case KH_KERNEL_ED25519:
    case KH_KERNEL_KIND_COUNT:
        op->out_len = lane->key->out_max;
        memcpy(op->out, lane->out, op->out_len);
        break;
    }
    op->result = KH_OK;
}

/*
 * Overwrites the stack below, where the kernels' frames were. explicit_bzero() here and in wipe(): the
 * compiler may not leave it out either, and OPENSSL_cleanse() goes eight bytes at a time, which cost P-256
 * a tenth of its rate.
 */
static __attribute__((noinline)) void wipe_stack(void)
{
    uint8_t below[STACK_WIPE_LEN];

    explicit_bzero(below, sizeof(below));
}

static void wipe(kh_kernel_scratch *scratch, const kh_backend_table *backend, kh_kernel_kind kind,
                 size_t lanes)
{
    if (!KH_WIPE_ON)
        return;
    explicit_bzero(scratch->work, work_len(kind));
    explicit_bzero(scratch->lane, lanes * sizeof(scratch->lane[0]));
    wipe_stack();
    backend->wipe_registers();
}

kh_result kh_kernel_batch(kh_kernel_scratch *scratch, kh_kernel_kind kind, kh_kernel_op *ops, size_t n)
{
    const kh_backend_table *backend = backends[selected];
    size_t lanes = 0;
    unsigned good = 0;

    if (n < 1 || n > KH_KERNEL_LANES || (unsigned)kind >= KH_KERNEL_KIND_COUNT)
        return KH_E_INVALID;
    if (backend == NULL)
        return KH_E_ORDER;
    for (size_t i = 0; i < n; i++) {
        ops[i].out_len = 0;
        ops[i].result = fill_lane(&scratch->lane[lanes], kind, &ops[i]);
        if (ops[i].result == KH_OK)
            lanes++;
    }
    if (lanes > 0)
        good = backend->run[kind](scratch, lanes);
    for (size_t i = 0; i < lanes; i++) {
        if (good >> i & 1) {
            take_result(&scratch->lane[i]);
        } else {
            atomic_fetch_add_explicit(&faults, 1, memory_order_relaxed);
            (void)kh_single_lane(&scratch->lane[i]);
        }
    }
    wipe(scratch, backend, kind, lanes);
    return KH_OK;
}

void kh_kernel_single(kh_kernel_op *op)
{
    kh_lane lane = {0};

    op->out_len = 0;
    op->result = op->key == NULL ? KH_E_INVALID : fill_lane(&lane, op->key->kind, op);
    if (op->result == KH_OK)
        (void)kh_single_lane(&lane);
    OPENSSL_cleanse(&lane, sizeof(lane));
}
