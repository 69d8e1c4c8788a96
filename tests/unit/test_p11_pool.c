/* SPDX-License-Identifier: Apache-2.0 */
/* Pools (T9's half for single keys): the pool key and how partitions join, keys wrapped under it, and damage
 * of both. */
#include "p11_rig.h"

#include "material.h"

#include <p11-kit/pkcs11.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define SO_PIN "12345678"
#define POOL "main"

/* SoftHSM is slow under a sanitizer; each byte is damaged in the other builds. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EACH 9
#else
#define EACH 1
#endif

static const uint8_t message[] = "what a TLS server signs";

typedef struct sort {
    kh_key_type type;
    unsigned bits;
    uint32_t scheme;
} sort;
static const sort sorts[] = {
    {KH_KEY_RSA, 2048, KH_RSA_PSS_RSAE_SHA256}, {KH_KEY_RSA, 3072, KH_RSA_PKCS1_SHA384},
    {KH_KEY_RSA, 4096, KH_RSA_PSS_RSAE_SHA512}, {KH_KEY_P256, 256, KH_ECDSA_SHA256},
    {KH_KEY_P384, 384, KH_ECDSA_SHA384},        {KH_KEY_P521, 521, KH_ECDSA_SHA512}};

typedef struct partition {
    kh_p11 *p11;
    kh_p11_session *session;
} partition;
static partition partitions[3];

static const char *const labels[] = {"part-1", "part-2", "part-3"};

static void attach(int which)
{
    partitions[which].p11 = rig_open(NULL, labels[which]);
    assert_int_equal(kh_p11_session_new(partitions[which].p11, true, &partitions[which].session), KH_OK);
}

static void detach(int which)
{
    kh_p11_session_free(partitions[which].session);
    kh_p11_close(partitions[which].p11);
    partitions[which] = (partition){0};
}

static kh_p11 *without_login(int which)
{
    kh_p11_config config = {
        .module = rig_softhsm(), .label = labels[which], .pin = (const uint8_t *)RIG_PIN, .pin_len = 4};
    kh_p11 *p11 = NULL;

    assert_int_equal(kh_p11_open(&config, &p11), KH_OK);
    return p11;
}

static void expect_damaged(int to, const kh_p11_transfer *transfer)
{
    assert_int_equal(kh_p11_poolkey_accept(partitions[to].session, POOL, transfer), KH_E_DAMAGED);
    assert_int_equal(kh_p11_poolkey_check(partitions[to].session, POOL), KH_E_NOT_FOUND);
}

/* T9: bytes of the pool key's transfer flipped, and its end cut: refused, and no pool key is there. Each costs an RSA operation. */
static void check_damaged_transfers(int to, kh_p11_transfer *transfer, uint32_t step)
{
    uint8_t *parts[] = {transfer->wrapped, transfer->probe};
    const uint32_t lens[] = {sizeof(transfer->wrapped), transfer->probe_len};

    for (size_t part = 0; part < 2; part++) {
        for (uint32_t i = 0; i < lens[part]; i += step) {
            parts[part][i] ^= (uint8_t)(1 << (i % 8));
            expect_damaged(to, transfer);
            parts[part][i] ^= (uint8_t)(1 << (i % 8));
        }
    }
    for (transfer->probe_len = 0; transfer->probe_len < lens[1]; transfer->probe_len += step) {
        expect_damaged(to, transfer);
    }
    transfer->probe_len = lens[1];
    transfer->hash ^= 3; /* the other hash */
    expect_damaged(to, transfer);
    transfer->hash ^= 3;
}

static void receive(int to, kh_p11_offer *offer)
{
    attach(to);
    assert_int_equal(kh_p11_poolkey_check(partitions[to].session, POOL), KH_E_NOT_FOUND);
    assert_int_equal(kh_p11_poolkey_receive(partitions[to].session, "no/name", offer), KH_E_INVALID);
    assert_int_equal(kh_p11_poolkey_receive(partitions[to].session, POOL, offer), KH_OK);
    detach(to);
}

static void accept_it(int to, kh_p11_transfer *transfer, uint32_t step)
{
    kh_p11_offer offer;

    attach(to);
    check_damaged_transfers(to, transfer, step);
    assert_int_equal(kh_p11_poolkey_accept(partitions[to].session, POOL, transfer), KH_OK);
    assert_int_equal(kh_p11_poolkey_check(partitions[to].session, POOL), KH_OK);
    assert_int_equal(kh_p11_poolkey_accept(partitions[to].session, POOL, transfer), KH_E_EXISTS);
    assert_int_equal(kh_p11_poolkey_receive(partitions[to].session, POOL, &offer), KH_E_EXISTS);
    detach(to);
}

/* One process has one module once: the partitions are visited one after the other. */
static void join(int from, int to)
{
    kh_p11_offer offer;
    kh_p11_transfer transfer;
    char error[KH_P11_ERROR_MAX];
    kh_p11 *p11 = NULL;

    receive(to, &offer);
    p11 = without_login(from);
    assert_int_equal(
        kh_p11_poolkey_hand_over(p11, (const uint8_t *)"87654321", 8, POOL, &offer, &transfer, error),
        KH_E_PASSPHRASE);
    assert_string_equal(error, "C_Login (security officer): CKR_PIN_INCORRECT");
    kh_p11_close(p11);
    p11 = without_login(from);
    assert_int_equal(
        kh_p11_poolkey_hand_over(p11, (const uint8_t *)SO_PIN, 8, POOL, &offer, &transfer, error), KH_OK);
    kh_p11_close(p11);
    accept_it(to, &transfer, 16);
}

static void a_pool_begins(void **state)
{
    kh_p11_offer offers[3];
    kh_p11_transfer transfers[3], other;

    (void)state;
    for (int i = 0; i < 3; i++) {
        receive(i, &offers[i]);
    }
    attach(1);
    assert_int_equal(kh_p11_poolkey_begin(partitions[1].session, offers, 3, transfers), KH_OK);
    detach(1);
    other = transfers[0];
    attach(1);
    assert_int_equal(kh_p11_poolkey_accept(partitions[1].session, POOL, &other), KH_E_DAMAGED);
    detach(1);
    for (int i = 0; i < 3; i++) {
        accept_it(i, &transfers[i], i == 0 ? EACH : 16); /* every byte once */
    }
}

static void check_signs(kh_p11_session *session, const kh_p11_locator *locator, const sort *of,
                        const uint8_t *spki, size_t spki_len)
{
    uint8_t out[KH_SIGNATURE_MAX], again[KH_SPKI_MAX];
    size_t len = 0, again_len = 0;
    kh_p11_key key;

    assert_int_equal(kh_p11_find(session, locator, &key), KH_OK);
    assert_int_equal(key.type, of->type);
    assert_int_equal(key.bits, of->bits);
    assert_int_equal(kh_p11_sign(session, &key, of->scheme, false, message, sizeof(message), out, &len),
                     KH_OK);
    assert_true(rig_verify(spki, spki_len, of->scheme, message, sizeof(message), out, len));
    assert_int_equal(kh_p11_public(session, locator, again, &again_len), KH_OK);
    assert_int_equal(again_len, spki_len);
    assert_memory_equal(again, spki, spki_len);
}

static uint8_t blobs[COUNT(sorts)][KH_P11_BLOB_MAX], spkis[COUNT(sorts)][KH_SPKI_MAX];
static size_t blob_lens[COUNT(sorts)], spki_lens[COUNT(sorts)];

/* Every second key is made in the token, the others are brought in. */
static void keys_are_the_same_everywhere(void **state)
{
    kh_material *material = calloc(1, sizeof(*material));

    (void)state;
    assert_non_null(material);
    attach(0);
    for (size_t i = 0; i < COUNT(sorts); i++) {
        if (i % 2 == 0) {
            assert_int_equal(kh_p11_pool_generate(partitions[0].session, POOL, sorts[i].type, sorts[i].bits,
                                                  spkis[i], &spki_lens[i], blobs[i], &blob_lens[i]),
                             KH_OK);
        } else {
            assert_int_equal(kh_material_generate(sorts[i].type, sorts[i].bits, material), KH_OK);
            assert_int_equal(kh_p11_pool_wrap(partitions[0].session, POOL, material->pkcs8,
                                              material->pkcs8_len, blobs[i], &blob_lens[i]),
                             KH_OK);
            memcpy(spkis[i], material->spki, material->spki_len);
            spki_lens[i] = material->spki_len;
        }
    }
    assert_int_equal(kh_p11_pool_generate(partitions[0].session, POOL, KH_KEY_ED25519, 256, spkis[0],
                                          &spki_lens[0], blobs[0], &blob_lens[0]),
                     KH_E_UNSUPPORTED);
    detach(0);
    kh_material_wipe(material);
    free(material);
    for (int which = 0; which < 3; which++) {
        attach(which);
        for (size_t i = 0; i < COUNT(sorts); i++) {
            kh_p11_locator locator = rig_locator((uint8_t)(1 + i), "site");

            for (int twice = 0; twice < 2; twice++) { /* a placing that is repeated does no harm */
                assert_int_equal(kh_p11_pool_unwrap(partitions[which].session, POOL, blobs[i], blob_lens[i],
                                                    &locator, KH_USAGE_TLS_SERVER, spkis[i], spki_lens[i]),
                                 KH_OK);
                check_signs(partitions[which].session, &locator, &sorts[i], spkis[i], spki_lens[i]);
            }
        }
        detach(which);
    }
}

static size_t objects(kh_p11_session *session)
{
    size_t count = 0;
    kh_p11_key key;

    for (unsigned id = 1; id < 128; id++) {
        kh_p11_locator locator = rig_locator((uint8_t)id, "site");

        count += kh_p11_find(session, &locator, &key) == KH_OK;
    }
    return count;
}

/* T9: each byte flipped and each truncation is refused, and nothing is stored. */
static void damaged_blobs_are_refused(void **state)
{
    static const size_t tried[] = {0, 3, 4,
                                   5}; /* of longer RSA keys the same bytes go the same way, for longer */
    uint8_t other[KH_SPKI_MAX], other_blob[KH_P11_BLOB_MAX];
    size_t before = 0, other_len = 0, other_blob_len = 0;

    (void)state;
    attach(1);
    assert_int_equal(kh_p11_pool_generate(partitions[1].session, POOL, KH_KEY_P256, 256, other, &other_len,
                                          other_blob, &other_blob_len),
                     KH_OK);
    before = objects(partitions[1].session);
    for (size_t t = 0; t < COUNT(tried); t++) {
        size_t i = tried[t];
        kh_p11_locator locator = rig_locator(100, "site");
        kh_p11_key key;

        for (size_t at = 0; at < blob_lens[i]; at += EACH) {
            blobs[i][at] ^= (uint8_t)(1 << (at % 8));
            assert_int_equal(kh_p11_pool_unwrap(partitions[1].session, POOL, blobs[i], blob_lens[i], &locator,
                                                KH_USAGE_TLS_SERVER, spkis[i], spki_lens[i]),
                             KH_E_DAMAGED);
            blobs[i][at] ^= (uint8_t)(1 << (at % 8));
            assert_int_equal(kh_p11_find(partitions[1].session, &locator, &key), KH_E_NOT_FOUND);
        }
        for (size_t len = 0; len < blob_lens[i]; len += EACH) {
            assert_int_equal(kh_p11_pool_unwrap(partitions[1].session, POOL, blobs[i], len, &locator,
                                                KH_USAGE_TLS_SERVER, spkis[i], spki_lens[i]),
                             KH_E_DAMAGED);
            assert_int_equal(kh_p11_find(partitions[1].session, &locator, &key), KH_E_NOT_FOUND);
        }
        /* Whole, but another key's. */
        assert_int_equal(kh_p11_pool_unwrap(partitions[1].session, POOL, blobs[i], blob_lens[i], &locator,
                                            KH_USAGE_TLS_SERVER, i == 0 ? spkis[1] : other,
                                            i == 0 ? spki_lens[1] : other_len),
                         KH_E_MISMATCH);
        assert_int_equal(kh_p11_find(partitions[1].session, &locator, &key), KH_E_NOT_FOUND);
    }
    assert_int_equal(objects(partitions[1].session), before);
    detach(1);
}

static CK_SLOT_ID slot_of(CK_FUNCTION_LIST *f, const char *label)
{
    CK_SLOT_ID slots[16], slot = 0;
    CK_ULONG count = 16;
    CK_TOKEN_INFO info;

    assert_int_equal(f->C_GetSlotList(CK_TRUE, slots, &count), CKR_OK);
    for (CK_ULONG i = 0; i < count; i++) {
        if (f->C_GetTokenInfo(slots[i], &info) == CKR_OK && memcmp(info.label, label, strlen(label)) == 0) {
            slot = slots[i];
        }
    }
    return slot;
}

/* What a keeper that was killed leaves of a key: it has its names, and is on no curve. */
static void leave_half_a_key(const char *label, const kh_p11_locator *locator)
{
    CK_FUNCTION_LIST *f = NULL;
    CK_C_GetFunctionList get = NULL;
    CK_SESSION_HANDLE session = 0;
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_KEY_TYPE type = CKK_EC;
    CK_BBOOL yes = CK_TRUE;
    CK_OBJECT_HANDLE object = 0;
    CK_ATTRIBUTE half[] = {{CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)}, {CKA_TOKEN, &yes, 1},
                           {CKA_ID, (void *)(uintptr_t)locator->id, locator->id_len},
                           {CKA_EC_PARAMS, (uint8_t[]){5, 0}, 2}, {CKA_VALUE, (uint8_t[]){1}, 1}};

    *(void **)&get = rig_symbol("C_GetFunctionList");
    assert_int_equal(get(&f), CKR_OK);
    assert_int_equal(f->C_OpenSession(slot_of(f, label), CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session), CKR_OK);
    assert_int_equal(f->C_CreateObject(session, half, COUNT(half), &object), CKR_OK);
    assert_int_equal(f->C_CloseSession(session), CKR_OK);
}

static void half_a_key_is_replaced(void **state)
{
    kh_p11_locator locator = rig_locator(4, "site");
    kh_p11_key key;

    (void)state;
    attach(2);
    assert_int_equal(kh_p11_destroy(partitions[2].session, &locator), KH_OK);
    leave_half_a_key(labels[2], &locator);
    assert_int_equal(kh_p11_find(partitions[2].session, &locator, &key), KH_E_UNSUPPORTED);
    assert_int_equal(kh_p11_pool_unwrap(partitions[2].session, POOL, blobs[3], blob_lens[3], &locator, KH_USAGE_TLS_SERVER,
                                        spkis[3], spki_lens[3]),
                     KH_OK);
    check_signs(partitions[2].session, &locator, &sorts[3], spkis[3], spki_lens[3]);
    detach(2);
}

/* A partition that has another key under the id: replaced. One that was emptied: filled again. */
static void partitions_are_repaired(void **state)
{
    kh_p11_locator locator = rig_locator(4, "site");
    uint8_t other[KH_SPKI_MAX];
    size_t len = 0;
    kh_p11_key key;

    (void)state;
    attach(2);
    assert_int_equal(kh_p11_destroy(partitions[2].session, &locator), KH_OK);
    assert_int_equal(kh_p11_find(partitions[2].session, &locator, &key), KH_E_NOT_FOUND);
    assert_int_equal(
        kh_p11_generate(partitions[2].session, KH_KEY_P256, 256, &locator, KH_USAGE_SIGN, other, &len),
        KH_OK);
    for (int twice = 0; twice < 2; twice++) {
        assert_int_equal(kh_p11_pool_unwrap(partitions[2].session, POOL, blobs[3], blob_lens[3], &locator,
                                            KH_USAGE_TLS_SERVER, spkis[3], spki_lens[3]),
                         KH_OK);
        check_signs(partitions[2].session, &locator, &sorts[3], spkis[3], spki_lens[3]);
        assert_int_equal(kh_p11_destroy(partitions[2].session, &locator), KH_OK);
    }
    assert_int_equal(kh_p11_poolkey_forget(partitions[2].session, POOL), KH_OK);
    assert_int_equal(kh_p11_poolkey_forget(partitions[2].session, POOL), KH_OK);
    assert_int_equal(kh_p11_pool_unwrap(partitions[2].session, POOL, blobs[3], blob_lens[3], &locator,
                                        KH_USAGE_TLS_SERVER, spkis[3], spki_lens[3]),
                     KH_E_NOT_FOUND);
    detach(2);
    join(0, 2); /* any partition can bring in another */
    attach(2);
    assert_int_equal(kh_p11_pool_unwrap(partitions[2].session, POOL, blobs[3], blob_lens[3], &locator,
                                        KH_USAGE_TLS_SERVER, spkis[3], spki_lens[3]),
                     KH_OK);
    check_signs(partitions[2].session, &locator, &sorts[3], spkis[3], spki_lens[3]);
    detach(2);
}

/* What somebody with the user's PIN and a blob gets: nothing. Spoken in plain PKCS#11. */
static void the_pin_alone_opens_nothing(void **state)
{
    CK_FUNCTION_LIST *f = NULL;
    CK_C_GetFunctionList get = NULL;
    CK_ULONG found = 0, len = 0;
    CK_SESSION_HANDLE session = 0;
    CK_OBJECT_CLASS secret = CKO_SECRET_KEY, private_ = CKO_PRIVATE_KEY;
    CK_KEY_TYPE ec = CKK_EC, generic = CKK_GENERIC_SECRET, aes = CKK_AES;
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_ATTRIBUTE search[] = {{CKA_LABEL, "keyhold-pool main", 17}, {CKA_CLASS, &secret, sizeof(secret)}};
    CK_OBJECT_HANDLE pool_key = 0, made = 0, other = 0;
    uint8_t value[32] = {1}, out[512];
    CK_MECHANISM pad = {.mechanism = CKM_AES_KEY_WRAP_PAD};
    CK_MECHANISM_TYPE all[] = {CKM_AES_KEY_WRAP_PAD, CKM_AES_CBC};

    (void)state;
    *(void **)&get = rig_symbol("C_GetFunctionList");
    assert_int_equal(get(&f), CKR_OK);
    assert_int_equal(f->C_Initialize(NULL), CKR_OK);
    assert_int_equal(f->C_OpenSession(slot_of(f, "part-1 "), CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session),
                     CKR_OK);
    assert_int_equal(f->C_Login(session, CKU_USER, (CK_BYTE *)RIG_PIN, 4), CKR_OK);
    assert_int_equal(f->C_FindObjectsInit(session, search, 2), CKR_OK);
    assert_int_equal(f->C_FindObjects(session, &pool_key, 1, &found), CKR_OK);
    assert_int_equal(f->C_FindObjectsFinal(session), CKR_OK);
    assert_int_equal(found, 1);

    /* It cannot be read, changed, or wrapped by a key that its user made. */
    CK_ATTRIBUTE read = {CKA_VALUE, value, sizeof(value)};
    assert_int_not_equal(f->C_GetAttributeValue(session, pool_key, &read, 1), CKR_OK);
    CK_ATTRIBUTE changes[] = {{CKA_WRAP_WITH_TRUSTED, &no, 1},
                              {CKA_DECRYPT, &yes, 1},
                              {CKA_SENSITIVE, &no, 1},
                              {CKA_UNWRAP_TEMPLATE, NULL, 0},
                              {CKA_ALLOWED_MECHANISMS, all, sizeof(all)}};
    for (size_t i = 0; i < COUNT(changes); i++) {
        assert_int_not_equal(f->C_SetAttributeValue(session, pool_key, &changes[i], 1), CKR_OK);
    }
    CK_ATTRIBUTE copy[] = {{CKA_WRAP_WITH_TRUSTED, &no, 1}, {CKA_TOKEN, &no, 1}};
    assert_int_not_equal(f->C_CopyObject(session, pool_key, copy, 2, &other), CKR_OK);
    CK_ATTRIBUTE mine[] = {{CKA_CLASS, &secret, sizeof(secret)},
                           {CKA_KEY_TYPE, &aes, sizeof(aes)},
                           {CKA_VALUE, value, sizeof(value)},
                           {CKA_WRAP, &yes, 1},
                           {CKA_TOKEN, &no, 1}};
    assert_int_equal(f->C_CreateObject(session, mine, COUNT(mine), &made), CKR_OK);
    len = sizeof(out);
    assert_int_not_equal(f->C_WrapKey(session, &pad, made, pool_key, out, &len), CKR_OK);
    CK_ATTRIBUTE trusted = {CKA_TRUSTED, &yes, 1};
    assert_int_not_equal(f->C_SetAttributeValue(session, made, &trusted, 1), CKR_OK);

    /* A blob becomes no key that can be read or wrapped, neither as what it is nor as a string of bytes. */
    CK_ATTRIBUTE open_key[] = {{CKA_CLASS, &private_, sizeof(private_)},
                               {CKA_KEY_TYPE, &ec, sizeof(ec)},
                               {CKA_TOKEN, &no, 1},
                               {CKA_SENSITIVE, &no, 1},
                               {CKA_EXTRACTABLE, &yes, 1}};
    assert_int_not_equal(
        f->C_UnwrapKey(session, &pad, pool_key, blobs[3], blob_lens[3], open_key, COUNT(open_key), &other),
        CKR_OK);
    CK_ATTRIBUTE bytes[] = {{CKA_CLASS, &secret, sizeof(secret)},
                            {CKA_KEY_TYPE, &generic, sizeof(generic)},
                            {CKA_TOKEN, &no, 1},
                            {CKA_SENSITIVE, &no, 1},
                            {CKA_EXTRACTABLE, &yes, 1}};
    assert_int_not_equal(
        f->C_UnwrapKey(session, &pad, pool_key, blobs[3], blob_lens[3], bytes, COUNT(bytes), &other), CKR_OK);
    /* Nor is it decrypted. */
    assert_int_not_equal(f->C_DecryptInit(session, &pad, pool_key), CKR_OK);
    CK_MECHANISM ecb = {.mechanism = CKM_AES_ECB};
    assert_int_not_equal(f->C_DecryptInit(session, &ecb, pool_key), CKR_OK);
    assert_int_equal(f->C_Finalize(NULL), CKR_OK);
}

static int set_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(labels); i++) {
        rig_token(labels[i]);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rig_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pool_begins),
        cmocka_unit_test(keys_are_the_same_everywhere),
        cmocka_unit_test(damaged_blobs_are_refused),
        cmocka_unit_test(the_pin_alone_opens_nothing),
        cmocka_unit_test(half_a_key_is_replaced),
        cmocka_unit_test(partitions_are_repaired),
    };

    if (rig_softhsm() == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
