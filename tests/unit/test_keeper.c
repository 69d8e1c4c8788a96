/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper as a front sees it: every operation over the ring, the admin socket, new rings, restarts,
 * hostile fronts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "keeper_rig.h"

#include <dirent.h>
#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int start(void **state)
{
    keeper_rig *rig = calloc(1, sizeof(*rig));

    rig_init(rig, NULL);
    assert_int_equal(rig_start(rig), KH_OK);
    *state = rig;
    return 0;
}

static int stop(void **state)
{
    keeper_rig *rig = *state;

    assert_int_equal(rig_stop(rig), KH_OK);
    rig_clean(rig);
    free(rig);
    return 0;
}

static const struct {
    kh_key_type type;
    unsigned bits;
} kinds[] = {{KH_KEY_RSA, 2048}, {KH_KEY_RSA, 3072}, {KH_KEY_P256, 256},
             {KH_KEY_P384, 384}, {KH_KEY_P521, 521}, {KH_KEY_ED25519, 0}};

static const uint32_t schemes[] = {
#define KH_X(constant, number, name, type, hash_len) number,
    KH_SCHEMES(KH_X)
#undef KH_X
};

/* Every key type signs with every scheme that fits it, message and digest; every other scheme is refused by
 * name. */
static void test_sign_everything(void **state)
{
    keeper_rig *rig = *state;
    uint8_t message[200], digest[64];

    RAND_bytes(message, sizeof(message));
    RAND_bytes(digest, sizeof(digest));
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        kh_key_info info;
        char name[32];

        snprintf(name, sizeof(name), "all-%zu", k);
        assert_int_equal(rig_create(rig, name, kinds[k].type, kinds[k].bits, KH_USAGE_SIGN, 0, &info), KH_OK);
        assert_int_equal(info.version, 1);
        assert_int_equal(info.state, 1);
        assert_string_equal(info.name, name);
        for (size_t s = 0; s < sizeof(schemes) / sizeof(schemes[0]); s++) {
            size_t hash_len = kh_scheme_hash_len((int)schemes[s]);

            for (int twice = 0; twice < 2; twice++) {
                kh_result result = rig_sign(rig, &info, schemes[s], 0, message, sizeof(message));
                const rig_answer *got = NULL;

                if (!kh_scheme_fits((int)schemes[s], (int)kinds[k].type)) {
                    assert_int_equal(result, KH_E_SCHEME);
                    break;
                }
                assert_int_equal(result, KH_OK);
                rig_sign(rig, &info, schemes[s], 0, message, sizeof(message));
                kh_record again = {.op = KH_STORE_SIGN,
                                   .key_ref = info.ref,
                                   .scheme = schemes[s],
                                   .data = message,
                                   .data_len = sizeof(message)};
                got = rig_call(rig, &again);
                assert_true(rig_verify(info.spki, info.spki_len, schemes[s], false, message, sizeof(message),
                                       got->data, got->len));
                assert_true(got->batch >= 1);
                again.flags = KH_SIGN_IS_DIGEST;
                again.data = digest;
                again.data_len = (uint32_t)hash_len;
                got = rig_call(rig, &again);
                if (hash_len == 0) {
                    assert_int_equal(got->result, KH_E_INVALID);
                } else {
                    assert_true(rig_verify(info.spki, info.spki_len, schemes[s], true, digest, hash_len,
                                           got->data, got->len));
                    again.data_len--;
                    assert_int_equal(rig_call(rig, &again)->result, KH_E_INVALID);
                }
            }
        }
        assert_int_equal(rig_sign(rig, &info, 0x0201, 0, message, sizeof(message)), KH_E_UNSUPPORTED);
        assert_int_equal(rig_sign(rig, &info, 0xffff0401, 0, message, sizeof(message)), KH_E_UNSUPPORTED);
    }
}

static void test_lifecycle(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info first, second, got;
    uint64_t generation = kh_keystore_generation(rig->keystore);
    kh_record list = {.op = KH_STORE_LIST, .arg = KH_LIST_PAGE};
    const uint8_t message[1] = "";

    assert_int_equal(rig_create(rig, "life", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &first), KH_OK);
    assert_true(kh_keystore_generation(rig->keystore) > generation);
    assert_int_equal(rig_create(rig, "life", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &got), KH_E_EXISTS);
    assert_int_equal(rig_create(rig, "none", KH_KEY_P256, 0, KH_USAGE_SIGN, KH_KEY_NEW_VERSION, &got),
                     KH_E_NOT_FOUND);
    assert_int_equal(rig_create(rig, "life", KH_KEY_P256, 0, KH_USAGE_TLS_SERVER, KH_KEY_NEW_VERSION, &got),
                     KH_E_INVALID);
    assert_int_equal(rig_create(rig, "life", KH_KEY_P384, 0, 0, KH_KEY_NEW_VERSION, &second), KH_OK);
    assert_int_equal(second.version, 2);
    assert_int_equal(second.usage, KH_USAGE_SIGN);
    assert_true(second.ref != first.ref);
    assert_int_equal(rig_create(rig, "bad/name", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &got), KH_E_INVALID);
    assert_int_equal(rig_create(rig, "x", KH_KEY_P256, 0, 0, 0, &got), KH_E_INVALID);
    assert_int_equal(rig_create(rig, "x", KH_KEY_P256, 0, KH_USAGE_TLS_RSA_KX, 0, &got), KH_E_INVALID);
    assert_int_equal(rig_create(rig, "x", KH_KEY_RSA, 1024, KH_USAGE_SIGN, 0, &got), KH_E_UNSUPPORTED);
    assert_int_equal(rig_create(rig, "x", KH_KEY_RSA, 8192, KH_USAGE_SIGN, 0, &got), KH_E_UNSUPPORTED);
    assert_int_equal(rig_create(rig, "x", 77, 0, KH_USAGE_SIGN, 0, &got), KH_E_UNSUPPORTED);

    assert_int_equal(rig_lookup(rig, "life", &got), KH_OK);
    assert_int_equal(got.version, 2);
    assert_int_equal(rig_lookup(rig, "life/1", &got), KH_OK);
    assert_memory_equal(&got, &first, sizeof(got));
    assert_int_equal(rig_lookup(rig, "life/3", &got), KH_E_NOT_FOUND);
    assert_int_equal(rig_lookup(rig, "li", &got), KH_E_NOT_FOUND);
    kh_record by_id = {.op = KH_STORE_LOOKUP, .flags = 1, .data = first.id, .data_len = 32};
    assert_int_equal(rig_call(rig, &by_id)->result, KH_OK);

    /* A state holds at once, also for a key that is in the cache. */
    assert_int_equal(rig_sign(rig, &second, KH_ECDSA_SHA256, 0, message, 1), KH_OK);
    assert_int_equal(rig_set_state(rig, "life", 2, 2, &got), KH_OK);
    assert_int_equal(rig_sign(rig, &second, KH_ECDSA_SHA256, 0, message, 1), KH_E_DISABLED);
    assert_int_equal(rig_sign(rig, &first, KH_ECDSA_SHA256, 0, message, 1), KH_OK);
    assert_int_equal(rig_lookup(rig, "life", &got), KH_OK);
    assert_int_equal(got.version, 1); /* enabled ones first */
    assert_int_equal(rig_set_state(rig, "life", 0, 3, &got), KH_OK);
    assert_int_equal(rig_sign(rig, &first, KH_ECDSA_SHA256, 0, message, 1), KH_E_NOT_FOUND);
    assert_int_equal(rig_set_state(rig, "life", 0, 1, &got), KH_E_FORBIDDEN);
    assert_int_equal(rig_create(rig, "life", KH_KEY_P256, 0, 0, KH_KEY_NEW_VERSION, &got), KH_E_DISABLED);

    /* What only root may do. */
    kh_key_info named = {.name = "life"};
    kh_record recover = {.op = KH_STORE_RECOVER, .data = (const uint8_t *)&named, .data_len = sizeof(named)};
    kh_record purge = {.op = KH_STORE_PURGE, .data = (const uint8_t *)&named, .data_len = sizeof(named)};
    kh_record certify = {.op = KH_STORE_CERTIFY,
                         .key_ref = first.ref,
                         .scheme = KH_ECDSA_SHA256,
                         .data = message,
                         .data_len = 1};
    kh_record check = {.op = KH_STORE_CHECK};
    assert_int_equal(rig_call(rig, &recover)->result, KH_E_FORBIDDEN);
    assert_int_equal(rig_call(rig, &purge)->result, KH_E_FORBIDDEN);
    assert_int_equal(rig_call(rig, &certify)->result, KH_E_FORBIDDEN);
    assert_int_equal(rig_call(rig, &check)->result, KH_E_FORBIDDEN);
    assert_int_equal(rig_admin(rig, &recover)->result, KH_OK);
    assert_int_equal(rig_sign(rig, &first, KH_ECDSA_SHA256, 0, message, 1), KH_OK);
    assert_int_equal(rig_sign(rig, &second, KH_ECDSA_SHA256, 0, message, 1), KH_E_DISABLED); /* as it was */
    assert_int_equal(rig_admin(rig, &purge)->result, KH_E_ORDER);
    assert_int_equal(rig_set_state(rig, "life", 0, 3, &got), KH_OK);
    assert_int_equal(rig_admin(rig, &purge)->result, KH_OK);
    assert_int_equal(rig_lookup(rig, "life", &got), KH_E_NOT_FOUND);
    assert_int_equal(rig_create(rig, "life", KH_KEY_P256, 0, KH_USAGE_TLS_SERVER, 0, &got), KH_OK);
    assert_true(got.ref != first.ref && got.ref != second.ref);
    certify.key_ref = got.ref;
    assert_int_equal(rig_sign(rig, &got, KH_ECDSA_SHA256, 0, message, 1), KH_E_USAGE);
    const rig_answer *signature = rig_admin(rig, &certify);
    assert_int_equal(signature->result, KH_OK);
    assert_true(rig_verify(got.spki, got.spki_len, KH_ECDSA_SHA256, false, message, 1, signature->data,
                           signature->len));
    assert_int_equal(rig_admin(rig, &check)->result, KH_OK);

    /* Pages. */
    for (int i = 0; i < 20; i++) {
        char name[32];

        snprintf(name, sizeof(name), "page-%02d", i);
        assert_int_equal(rig_create(rig, name, KH_KEY_ED25519, 0, KH_USAGE_SIGN, 0, NULL), KH_OK);
    }
    char last[KH_NAME_MAX + 16] = "";
    unsigned seen = 0, pages = 0;
    for (;;) {
        list.data = (const uint8_t *)last;
        list.data_len = (uint32_t)strlen(last);
        const rig_answer *page = rig_call(rig, &list);
        assert_int_equal(page->result, KH_OK);
        assert_int_equal(page->len % sizeof(kh_key_info), 0);
        if (page->len == 0) {
            break;
        }
        seen += page->len / sizeof(kh_key_info);
        pages++;
        memcpy(&got, page->data + page->len - sizeof(got), sizeof(got));
        assert_int_equal(got.spki_len, 0);
        snprintf(last, sizeof(last), "%s/%u", got.name, got.version);
    }
    assert_true(seen >= 21 && pages >= 2);
    list.arg = KH_LIST_PAGE + 1;
    assert_int_equal(rig_call(rig, &list)->result, KH_E_INVALID);
}

static EVP_PKEY *rsa_with(unsigned bits, unsigned long e)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    BIGNUM *exponent = BN_new();
    EVP_PKEY *pkey = NULL;

    BN_set_word(exponent, e);
    assert_int_equal(EVP_PKEY_keygen_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, (int)bits), 1);
    assert_int_equal(EVP_PKEY_CTX_set1_rsa_keygen_pubexp(ctx, exponent), 1);
    assert_int_equal(EVP_PKEY_generate(ctx, &pkey), 1);
    BN_free(exponent);
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

static void test_import(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info, other;
    EVP_PKEY *good = rsa_with(2048, 65537), *small = rsa_with(1024, 65537), *cubic = rsa_with(2048, 3);
    EVP_PKEY *foreign = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "secp256k1"),
             *ed448 = EVP_PKEY_Q_keygen(NULL, NULL, "ED448");
    kh_record record = {.op = KH_STORE_IMPORT_KEY};
    const uint8_t message[3] = "abc";

    assert_int_equal(rig_call(rig, &record)->len, 32);
    assert_memory_equal(rig_call(rig, &record)->data, rig->import_public, 32);
    assert_int_equal(rig_import(rig, "in", good, KH_USAGE_SIGN, 0, &info), KH_OK);
    assert_int_equal(info.type, KH_KEY_RSA);
    assert_int_equal(info.bits, 2048);
    assert_int_equal(rig_sign(rig, &info, KH_RSA_PSS_RSAE_SHA256, 0, message, 3), KH_OK);
    assert_int_equal(rig_import(rig, "in2", good, KH_USAGE_SIGN, 0, &other), KH_E_DUPLICATE);
    assert_int_equal(rig_import(rig, "in2", good, KH_USAGE_SIGN, KH_KEY_ALLOW_DUPLICATE, &other), KH_OK);
    assert_memory_equal(other.id, info.id, 32);
    assert_int_equal(rig_import(rig, "small", small, KH_USAGE_SIGN, 0, &other), KH_E_WEAK);
    assert_int_equal(rig_import(rig, "cubic", cubic, KH_USAGE_SIGN, 0, &other), KH_E_WEAK);
    assert_int_equal(rig_import(rig, "foreign", foreign, KH_USAGE_SIGN, 0, &other), KH_E_UNSUPPORTED);
    assert_int_equal(rig_import(rig, "ed448", ed448, KH_USAGE_SIGN, 0, &other), KH_E_UNSUPPORTED);
    EVP_PKEY_free(good);
    EVP_PKEY_free(small);
    EVP_PKEY_free(cubic);
    EVP_PKEY_free(foreign);
    EVP_PKEY_free(ed448);
}

static size_t encrypt(EVP_PKEY *public_key, int padding, const char *oaep, const char *label,
                      const uint8_t *in, size_t len, uint8_t *out)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, public_key, NULL);
    size_t out_len = 512;

    assert_int_equal(EVP_PKEY_encrypt_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(ctx, padding), 1);
    if (oaep != NULL) {
        assert_int_equal(EVP_PKEY_CTX_set_rsa_oaep_md_name(ctx, oaep, NULL), 1);
        assert_int_equal(EVP_PKEY_CTX_set_rsa_mgf1_md_name(ctx, oaep, NULL), 1);
        assert_int_equal(EVP_PKEY_CTX_set0_rsa_oaep_label(ctx, OPENSSL_strdup(label), (int)strlen(label)), 1);
    }
    assert_int_equal(EVP_PKEY_encrypt(ctx, out, &out_len, in, len), 1);
    EVP_PKEY_CTX_free(ctx);
    return out_len;
}

static void test_decrypt(void **state)
{
    static const struct {
        uint32_t padding;
        int openssl;
        const char *md, *label;
    } ways[] = {
        {KH_PADDING_PKCS1, RSA_PKCS1_PADDING, NULL, ""},
        {KH_PADDING_OAEP_SHA1, RSA_PKCS1_OAEP_PADDING, "SHA1", ""},
        {KH_PADDING_OAEP_SHA256, RSA_PKCS1_OAEP_PADDING, "SHA256", "a label"},
        {KH_PADDING_OAEP_SHA384, RSA_PKCS1_OAEP_PADDING, "SHA384", ""},
        {KH_PADDING_OAEP_SHA512, RSA_PKCS1_OAEP_PADDING, "SHA512", "x"},
    };
    keeper_rig *rig = *state;
    kh_key_info info, signer;
    uint8_t data[600], plain[32], block[256];

    assert_int_equal(rig_create(rig, "dec", KH_KEY_RSA, 2048, KH_USAGE_DECRYPT, 0, &info), KH_OK);
    assert_int_equal(rig_create(rig, "nodec", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &signer), KH_OK);
    EVP_PKEY *public_key = rig_public(&info);
    RAND_bytes(plain, sizeof(plain));
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        size_t label_len = strlen(ways[i].label);
        kh_record record = {.op = KH_STORE_DECRYPT,
                            .key_ref = info.ref,
                            .scheme = ways[i].padding,
                            .arg = (uint32_t)label_len,
                            .data = data};

        memcpy(data, ways[i].label, label_len);
        record.data_len = (uint32_t)(label_len + encrypt(public_key, ways[i].openssl, ways[i].md,
                                                         ways[i].label, plain, 32, data + label_len));
        assert_int_equal(rig_call(rig, &record)->result, KH_OK);
        assert_int_equal(rig_call(rig, &record)->len, 32);
        assert_memory_equal(rig_call(rig, &record)->data, plain, 32);
        data[label_len + 100] ^= 1;
        assert_int_equal(rig_call(rig, &record)->result, KH_E_CRYPTO);
        record.data_len--;
        assert_int_equal(rig_call(rig, &record)->result, KH_E_INVALID);
        record.arg = 0xffffffff;
        assert_int_equal(rig_call(rig, &record)->result, KH_E_INVALID);
    }
    memset(block, 0x17, sizeof(block));
    kh_record raw = {.op = KH_STORE_DECRYPT, .key_ref = info.ref, .scheme = KH_PADDING_RAW, .data = data};
    raw.data_len = (uint32_t)encrypt(public_key, RSA_NO_PADDING, NULL, "", block, 256, data);
    assert_int_equal(rig_call(rig, &raw)->result, KH_OK);
    assert_memory_equal(rig_call(rig, &raw)->data, block, 256);
    memset(data, 0xff, 256);
    assert_int_equal(rig_call(rig, &raw)->result, KH_E_INVALID);
    raw.scheme = 99;
    assert_int_equal(rig_call(rig, &raw)->result, KH_E_UNSUPPORTED);
    raw.key_ref = signer.ref;
    assert_int_equal(rig_call(rig, &raw)->result, KH_E_SCHEME);
    assert_int_equal(rig_sign(rig, &info, KH_RSA_PKCS1_SHA256, 0, plain, 32), KH_E_USAGE);
    raw.op = KH_STORE_TLS_RSA_KX;
    raw.key_ref = info.ref;
    raw.arg = 0x0303;
    assert_int_equal(rig_call(rig, &raw)->result, KH_E_USAGE);
    EVP_PKEY_free(public_key);
}

/*
 * M9, through the ring: whatever is wrong, the answer is KH_OK and 48 bytes that look random, and are the
 * same when the same is asked again: a good ciphertext's are, so others would tell.
 */
static void test_tls_rsa_kx(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info;
    uint8_t premaster[48] = {3, 3}, ciphertext[512], block[256], answers[8][48];

    assert_int_equal(rig_create(rig, "kx", KH_KEY_RSA, 2048, KH_USAGE_TLS_RSA_KX, 0, &info), KH_OK);
    EVP_PKEY *public_key = rig_public(&info);
    RAND_bytes(premaster + 2, 46);
    kh_record record = {.op = KH_STORE_TLS_RSA_KX, .key_ref = info.ref, .arg = 0x0303, .data = ciphertext};
    record.data_len = (uint32_t)encrypt(public_key, RSA_PKCS1_PADDING, NULL, "", premaster, 48, ciphertext);
    assert_int_equal(rig_call(rig, &record)->result, KH_OK);
    assert_int_equal(rig_call(rig, &record)->len, 48);
    assert_memory_equal(rig_call(rig, &record)->data, premaster, 48);
    record.arg = 0x0302;
    assert_int_equal(rig_call(rig, &record)->result, KH_E_UNSUPPORTED);
    record.arg = 0x10303;
    assert_int_equal(rig_call(rig, &record)->result, KH_E_UNSUPPORTED);
    for (int fault = 0; fault < 8; fault++) {
        record.arg = 0x0303;
        memset(block, 0x5f, sizeof(block));
        block[0] = 0;
        block[1] = 2;
        block[256 - 49] = 0;
        memcpy(block + 256 - 48, premaster, 48);
        switch (fault) {
        case 0:
            block[1] = 1;
            break;
        case 1:
            block[100] = 0;
            break;
        case 2:
            block[256 - 49] = 1;
            break;
        case 3:
            block[256 - 48] = 2;
            break;
        case 4:
            block[256 - 47] = 1;
            break;
        case 5:
            record.arg = 0x0304;
            break;
        default:
            break;
        }
        record.data_len = (uint32_t)encrypt(public_key, RSA_NO_PADDING, NULL, "", block, 256, ciphertext);
        if (fault == 6) {
            record.data_len = 255;
        }
        if (fault == 7) {
            memset(ciphertext, 0xff, 256);
        }
        assert_int_equal(rig_call(rig, &record)->result, KH_OK);
        assert_int_equal(rig_call(rig, &record)->len, 48);
        memcpy(answers[fault], rig_call(rig, &record)->data, 48);
        assert_memory_not_equal(answers[fault], premaster, 48);
        assert_memory_equal(rig_call(rig, &record)->data, answers[fault], 48);
        for (int before = 0; before < fault; before++) {
            assert_memory_not_equal(answers[fault], answers[before], 48);
        }
    }
    /* Also after the key was loaded anew. */
    assert_int_equal(rig_set_state(rig, "kx", 1, 2, &info), KH_OK);
    assert_int_equal(rig_set_state(rig, "kx", 1, 1, &info), KH_OK);
    assert_memory_equal(rig_call(rig, &record)->data, answers[7], 48);
    EVP_PKEY_free(public_key);
}

static void test_deadline_and_batches(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info;
    kh_keeper_stats stats;
    uint64_t done = 0, cookie = 0, expired = 0;
    const uint8_t message[5] = "hello";
    uint32_t deepest = 0;

    assert_int_equal(rig_create(rig, "batch", KH_KEY_RSA, 2048, KH_USAGE_SIGN, 0, &info), KH_OK);
    kh_record record = {.op = KH_STORE_SIGN,
                        .key_ref = info.ref,
                        .scheme = KH_RSA_PKCS1_SHA256,
                        .data = message,
                        .data_len = 5};
    assert_int_equal(rig_call(rig, &record)->result, KH_OK);
    for (unsigned i = 0; i < 128; i++) {
        record.cookie = 1000 + i;
        record.deadline_ns = i % 4 == 3 ? 1 : now_ns() + 20000000000u;
        assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_OK);
    }
    kh_keystore_flush(rig->keystore);
    while (done < 128) {
        const rig_answer *got = rig_wait(rig, &cookie);

        done++;
        if ((cookie - 1000) % 4 == 3) {
            assert_int_equal(got->result, KH_E_DEADLINE);
            assert_int_equal(got->batch, 0);
            expired++;
        } else {
            assert_int_equal(got->result, KH_OK);
            deepest = got->batch > deepest ? got->batch : deepest;
        }
    }
    assert_int_equal(expired, 32);
    assert_int_equal(deepest, KH_BATCH_MAX);
    kh_keystore_stats(rig->keystore, &stats);
    assert_true(stats.lanes[KH_LANE_RSA2048].operations >= 97);
    assert_int_equal(stats.lanes[KH_LANE_RSA2048].expired, 32);
    assert_true(stats.lanes[KH_LANE_RSA2048].batches[8] > 0);
    assert_int_equal(stats.running, 1);
    assert_int_equal(stats.workers, 2);
    /* Full, and more than full. */
    while (kh_keystore_free_slots(rig->keystore) > 0) {
        record.deadline_ns = 1;
        assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_OK);
    }
    assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_E_OVERLOADED);
    kh_keystore_flush(rig->keystore);
    for (uint32_t i = 0; i < rig->slots; i++) {
        rig_wait(rig, &cookie);
    }
    assert_int_equal(kh_keystore_free_slots(rig->keystore), rig->slots);
    record.data_len = KH_RECORD_DATA_MAX + 1;
    assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_E_TOO_LARGE);
}

/* A front dies with operations in flight; the next one gets a ring and everything goes on. */
static void test_new_ring(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info;
    const uint8_t message[5] = "hello";

    assert_int_equal(rig_create(rig, "ring", KH_KEY_RSA, 2048, KH_USAGE_SIGN, 0, &info), KH_OK);
    for (int round = 0; round < 20; round++) {
        kh_record record = {.op = KH_STORE_SIGN,
                            .key_ref = info.ref,
                            .scheme = KH_RSA_PKCS1_SHA256,
                            .data = message,
                            .data_len = 5};

        for (int i = 0; i < 64; i++) {
            assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_OK);
        }
        kh_keystore_flush(rig->keystore);
        rig_new_ring(rig);
        assert_int_equal(rig_sign(rig, &info, KH_RSA_PKCS1_SHA256, 0, message, 5), KH_OK);
    }
}

/* Threads of the keeper that may not run on that CPU. */
static uint32_t threads_off(const keeper_rig *rig, int cpu)
{
    char path[64];
    DIR *tasks = NULL;
    uint32_t off = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)rig->pid);
    tasks = opendir(path);
    assert_non_null(tasks);
    for (struct dirent *task = readdir(tasks); task != NULL; task = readdir(tasks)) {
        cpu_set_t cpus;

        off += task->d_name[0] != '.' && sched_getaffinity(atoi(task->d_name), sizeof(cpus), &cpus) == 0 && !CPU_ISSET(cpu, &cpus);
    }
    closedir(tasks);
    return off;
}

/* Signs, so that every worker has something to do, until so many keep off the CPU. */
static void sign_until_off(keeper_rig *rig, const kh_record *record, int cpu, uint32_t off)
{
    const uint64_t until_ns = now_ns() + UINT64_C(60000000000);

    while (threads_off(rig, cpu) != off) {
        assert_true(now_ns() < until_ns);
        for (int i = 0; i < 32; i++) {
            assert_int_equal(kh_keystore_submit(rig->keystore, record), KH_OK);
        }
        kh_keystore_flush(rig->keystore);
        for (int i = 0; i < 32; i++) {
            assert_int_equal(rig_wait(rig, NULL)->result, KH_OK);
        }
    }
}

static void test_apart(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info;
    const uint8_t message[5] = "hello";
    kh_record record = {.op = KH_STORE_SIGN, .scheme = KH_RSA_PKCS1_SHA256, .data = message, .data_len = 5};
    cpu_set_t before, now;
    int cpu = -1;

    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    if (CPU_COUNT(&before) < 2) {
        skip();
    }
    assert_int_equal(rig_create(rig, "apart", KH_KEY_RSA, 2048, KH_USAGE_SIGN, 0, &info), KH_OK);
    record.key_ref = info.ref;
    for (int round = 0; round < 3; round++) {
        int avoid = round == 0 ? -1 : cpu;

        cpu = kh_keystore_apart(rig->keystore, avoid);
        assert_true(cpu >= 0 && cpu != avoid);
        assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
        assert_true(CPU_COUNT(&now) == 1 && CPU_ISSET(cpu, &now));
        sign_until_off(rig, &record, cpu, rig->workers);
        if (round == 1) { /* a new front has wished nothing yet */
            rig_new_ring(rig);
        } else {
            kh_keystore_anywhere(rig->keystore);
        }
        assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
        assert_true(CPU_EQUAL(&now, &before));
        sign_until_off(rig, &record, cpu, 0);
    }
    CPU_ZERO(&now);
    CPU_SET(cpu, &now);
    assert_int_equal(sched_setaffinity(0, sizeof(now), &now), 0);
    assert_int_equal(kh_keystore_apart(rig->keystore, -1), -1); /* one CPU cannot be shared out */
    assert_int_equal(kh_keystore_apart(rig->keystore, cpu), -1);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
    sign_until_off(rig, &record, cpu, 0);
}

/*
 * Once a change of state is acknowledged, nothing is computed with the key, though a thousand operations that
 * had the key already were waiting.
 */
static void change_under_load(keeper_rig *rig, uint32_t to, kh_result refused)
{
    kh_key_info info, changed = {.state = to};
    uint8_t message[256];
    kh_record record = {.op = KH_STORE_SIGN, .scheme = KH_RSA_PSS_RSAE_SHA256, .data = message};
    kh_record change = {
        .op = KH_STORE_SET_STATE, .data = (const uint8_t *)&changed, .data_len = sizeof(changed)};
    uint64_t at_once = 0, good = 0;
    kh_keeper_stats stats;

    snprintf(changed.name, sizeof(changed.name), "under-load-%u", to);
    assert_int_equal(rig_create(rig, changed.name, KH_KEY_RSA, 4096, KH_USAGE_TLS_SERVER, 0, &info), KH_OK);
    record.key_ref = info.ref;
    record.data_len = (uint32_t)rig_tls13_message(message, "server", 32);
    assert_int_equal(rig_call(rig, &record)->result, KH_OK);
    kh_keystore_stats(rig->keystore, &stats);
    at_once = stats.lanes[KH_LANE_RSA4096].operations;
    for (uint32_t i = 0; i < rig->slots; i++) {
        assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_OK);
    }
    kh_keystore_flush(rig->keystore);
    do { /* until the first batch is through, so that the rest is in its lane */
        kh_keystore_stats(rig->keystore, &stats);
    } while (stats.lanes[KH_LANE_RSA4096].operations == at_once);
    assert_int_equal(rig_admin(rig, &change)->result, KH_OK);
    kh_keystore_stats(rig->keystore, &stats);
    at_once = stats.lanes[KH_LANE_RSA4096].operations;
    for (uint32_t i = 0; i < rig->slots; i++) {
        kh_result result = rig_wait(rig, NULL)->result;

        assert_true(result == KH_OK || result == refused);
        good += result == KH_OK;
    }
    assert_true(good > 0 && good < rig->slots);
    kh_keystore_stats(rig->keystore, &stats);
    assert_int_equal(stats.lanes[KH_LANE_RSA4096].operations, at_once);
    assert_int_equal(rig_call(rig, &record)->result, refused);
}

/* A front that was taken over repeats what it saw: an import, an enabling. Root's word stays. */
static void test_root_over_front(void **state)
{
    keeper_rig *rig = *state;
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    uint8_t data[sizeof(kh_key_info) + 4096];
    kh_key_info asked = {.usage = KH_USAGE_SIGN, .name = "replayed"};
    kh_key_info named = {.state = 2, .name = "replayed"};
    kh_record import = {.op = KH_STORE_IMPORT, .data = data};
    kh_record root = {.op = KH_STORE_SET_STATE, .data = (const uint8_t *)&named, .data_len = sizeof(named)};
    kh_key_info info;
    size_t len = 0;

    memcpy(data, &asked, sizeof(asked));
    rig_wrap(rig, asked.name, pkey, asked.usage, 0, data + sizeof(asked), 4096, &len);
    import.data_len = (uint32_t)(sizeof(asked) + len);
    assert_int_equal(rig_call(rig, &import)->result, KH_OK);

    assert_int_equal(rig_admin(rig, &root)->result, KH_OK);
    assert_int_equal(rig_set_state(rig, asked.name, 0, 1, &info), KH_E_FORBIDDEN);
    assert_int_equal(rig_set_state(rig, asked.name, 1, 1, &info), KH_E_FORBIDDEN);
    named.state = 1;
    assert_int_equal(rig_admin(rig, &root)->result, KH_OK);
    assert_int_equal(rig_lookup(rig, asked.name, &info), KH_OK);
    assert_int_equal(rig_sign(rig, &info, KH_ECDSA_SHA256, 0, "x", 1), KH_OK);

    assert_int_equal(rig_set_state(rig, asked.name, 0, 3, &info), KH_OK);
    root.op = KH_STORE_PURGE;
    assert_int_equal(rig_admin(rig, &root)->result, KH_OK);
    assert_int_equal(rig_call(rig, &import)->result, KH_E_FORBIDDEN);
    assert_int_equal(rig_lookup(rig, asked.name, &info), KH_E_NOT_FOUND);
    assert_int_equal(rig_admin(rig, &import)->result, KH_OK); /* root may have it back */
    assert_int_equal(rig_lookup(rig, asked.name, &info), KH_OK);
    EVP_PKEY_free(pkey);
}

/* Through all its slices. */
static void test_check(void **state)
{
    keeper_rig *rig = *state;
    kh_record check = {.op = KH_STORE_CHECK};
    const rig_answer *got = rig_admin(rig, &check);

    assert_int_equal(got->result, KH_OK);
    assert_true(got->len > 8 && memcmp(got->data, "ok ", 3) == 0);
}

static void test_change_under_load(void **state)
{
    change_under_load(*state, 2, KH_E_DISABLED);
    change_under_load(*state, 3, KH_E_NOT_FOUND);
}

/* Waits until each thread of the keeper sleeps. */
static void wait_until_asleep(pid_t pid)
{
    bool asleep = false;

    while (!asleep) {
        char path[300], line[300];
        struct dirent *entry = NULL;
        DIR *dir = NULL;

        snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
        assert_non_null(dir = opendir(path));
        asleep = true;
        while ((entry = readdir(dir)) != NULL) {
            FILE *file = NULL;

            snprintf(path, sizeof(path), "/proc/%d/task/%.20s/stat", (int)pid, entry->d_name);
            if (entry->d_name[0] == '.' || (file = fopen(path, "r")) == NULL) {
                continue;
            }
            asleep = asleep && fgets(line, sizeof(line), file) != NULL && strstr(line, ") S ") != NULL;
            fclose(file);
        }
        closedir(dir);
        sched_yield();
    }
}

/*
 * P-521 has no kernel, so company gains nothing: of two operations each worker takes one. A worker wakes by itself twice a
 * second, and then may take both.
 */
static void test_single_operations_are_shared(void **state)
{
    keeper_rig *rig = *state;
    const uint8_t message[5] = "hello";
    unsigned shared = 0;
    uint64_t cookie = 0;
    kh_key_info info;

    assert_int_equal(rig_create(rig, "shared", KH_KEY_P521, 0, KH_USAGE_SIGN, 0, &info), KH_OK);
    kh_record record = {.op = KH_STORE_SIGN,
                        .key_ref = info.ref,
                        .scheme = KH_ECDSA_SHA512,
                        .data = message,
                        .data_len = 5};
    assert_int_equal(rig_call(rig, &record)->result, KH_OK);
    for (unsigned round = 0; round < 100; round++) {
        uint32_t batches[2] = {0};

        wait_until_asleep(rig->pid);
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(kh_keystore_submit(rig->keystore, &record), KH_OK);
        }
        kh_keystore_flush(rig->keystore);
        for (unsigned i = 0; i < 2; i++) {
            batches[i] = rig_wait(rig, &cookie)->batch;
        }
        shared += batches[0] == 1 && batches[1] == 1;
    }
    assert_true(shared >= 90);
}

static void test_restart(void **state)
{
    keeper_rig *rig = *state;
    kh_key_info info;
    keeper_rig second = *rig;
    const uint8_t message[5] = "hello";

    assert_int_equal(rig_create(rig, "stays", KH_KEY_P256, 0, KH_USAGE_SIGN, 0, &info), KH_OK);
    second.keystore = NULL;
    assert_int_equal(rig_start(&second), KH_E_LOCKED);
    rig_kill(rig);
    assert_int_equal(rig_start(rig), KH_OK);
    assert_int_equal(rig_sign(rig, &info, KH_ECDSA_SHA256, 0, message, 5), KH_OK);
    assert_int_equal(rig_stop(rig), KH_OK);
    second = *rig;
    second.kek[0] ^= 1;
    assert_int_equal(rig_start(&second), KH_E_PASSPHRASE);
    assert_int_equal(rig_start(rig), KH_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sign_everything), cmocka_unit_test(test_lifecycle),
        cmocka_unit_test(test_import),          cmocka_unit_test(test_decrypt),
        cmocka_unit_test(test_tls_rsa_kx),      cmocka_unit_test(test_deadline_and_batches),
        cmocka_unit_test(test_new_ring),        cmocka_unit_test(test_apart),
        cmocka_unit_test(test_change_under_load),
        cmocka_unit_test(test_root_over_front), cmocka_unit_test(test_check),
        cmocka_unit_test(test_single_operations_are_shared), cmocka_unit_test(test_restart),
    };

    kh_secure_openssl();
    return cmocka_run_group_tests(tests, start, stop);
}
