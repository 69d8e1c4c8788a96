/* SPDX-License-Identifier: Apache-2.0 */
/* A real SoftHSM token: opening, logging in, making, bringing in, finding, signing, destroying. */
#include "p11_rig.h"

#include "material.h"

#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const uint8_t message[] = "what a TLS server signs";

typedef struct kind {
    kh_key_type type;
    unsigned bits;
} kind;
static const kind kinds[] = {{KH_KEY_RSA, 2048}, {KH_KEY_RSA, 3072}, {KH_KEY_RSA, 4096},   {KH_KEY_P256, 256},
                             {KH_KEY_P384, 384}, {KH_KEY_P521, 521}, {KH_KEY_ED25519, 256}};
static const uint32_t schemes[] = {
#define KH_X(constant, number, name, type, hash_len) constant,
    KH_SCHEMES(KH_X)
#undef KH_X
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

typedef struct rig {
    kh_p11 *p11;
    kh_p11_session *session;
} rig;

static int set_up(void **state)
{
    static rig the_rig;

    rig_token("one");
    the_rig.p11 = rig_open(NULL, "one");
    assert_int_equal(kh_p11_session_new(the_rig.p11, true, &the_rig.session), KH_OK);
    *state = &the_rig;
    return 0;
}

static int tear_down(void **state)
{
    rig *r = *state;

    kh_p11_session_free(r->session);
    kh_p11_close(r->p11);
    rig_clean();
    return 0;
}

/* Every scheme that fits the key verifies, from the message and from its digest; the others are refused by
 * name. */
static void sign_all(rig *r, const kh_p11_locator *locator, const uint8_t *spki, size_t spki_len,
                     const kind *made)
{
    kh_p11_key key;
    uint8_t out[KH_SIGNATURE_MAX], digest[64];
    size_t len = 0, signed_count = 0;

    assert_int_equal(kh_p11_find(r->session, locator, &key), KH_OK);
    assert_int_equal(key.type, made->type);
    assert_int_equal(key.bits, made->bits);
    for (size_t i = 0; i < COUNT(schemes); i++) {
        size_t hash_len = kh_scheme_hash_len((int)schemes[i]);
        kh_result result =
            kh_p11_sign(r->session, &key, schemes[i], false, message, sizeof(message), out, &len);

        if (!kh_scheme_fits((int)schemes[i], (int)made->type)) {
            assert_int_equal(result, KH_E_SCHEME);
            continue;
        }
        assert_true(kh_p11_can(r->p11, made->type, made->bits, schemes[i]));
        assert_int_equal(result, KH_OK);
        assert_true(rig_verify(spki, spki_len, schemes[i], message, sizeof(message), out, len));
        signed_count++;
        if (hash_len > 0) {
            const EVP_MD *md = hash_len == 32 ? EVP_sha256() : hash_len == 48 ? EVP_sha384() : EVP_sha512();

            assert_int_equal(EVP_Digest(message, sizeof(message), digest, NULL, md, NULL), 1);
            assert_int_equal(kh_p11_sign(r->session, &key, schemes[i], true, digest, hash_len, out, &len),
                             KH_OK);
            assert_true(rig_verify(spki, spki_len, schemes[i], message, sizeof(message), out, len));
            assert_int_equal(kh_p11_sign(r->session, &key, schemes[i], true, digest, hash_len - 1, out, &len),
                             KH_E_INVALID);
        }
    }
    assert_int_equal(signed_count, made->type == KH_KEY_RSA ? 6 : made->type == KH_KEY_ED25519 ? 1 : 3);
}

static void makes_and_signs(void **state)
{
    rig *r = *state;

    for (size_t i = 0; i < COUNT(kinds); i++) {
        kh_p11_locator locator = rig_locator((uint8_t)(1 + i), "made"), by_label = {.label = "made"};
        uint8_t spki[KH_SPKI_MAX], again[KH_SPKI_MAX];
        size_t spki_len = 0, again_len = 0;
        kh_p11_key key;

        assert_int_equal(kh_p11_generate(r->session, kinds[i].type, kinds[i].bits, &locator,
                                         KH_USAGE_TLS_SERVER, spki, &spki_len),
                         KH_OK);
        assert_int_equal(kh_p11_public(r->session, &locator, again, &again_len), KH_OK);
        assert_int_equal(again_len, spki_len);
        assert_memory_equal(again, spki, spki_len);
        sign_all(r, &locator, spki, spki_len, &kinds[i]);
        assert_int_equal(kh_p11_find(r->session, &by_label, &key), KH_OK);
        assert_int_equal(kh_p11_destroy(r->session, &locator), KH_OK);
        assert_int_equal(kh_p11_find(r->session, &locator, &key), KH_E_NOT_FOUND);
        assert_int_equal(kh_p11_public(r->session, &locator, again, &again_len), KH_E_NOT_FOUND);
        assert_int_equal(kh_p11_destroy(r->session, &locator), KH_OK);
    }
}

static void brings_in_and_signs(void **state)
{
    rig *r = *state;
    kh_material *material = calloc(1, sizeof(*material));

    assert_non_null(material);
    for (size_t i = 0; i < COUNT(kinds); i++) {
        kh_p11_locator locator = rig_locator((uint8_t)(32 + i), "brought");
        uint8_t spki[KH_SPKI_MAX];
        size_t spki_len = 0;

        assert_int_equal(kh_material_generate(kinds[i].type, kinds[i].bits, material), KH_OK);
        assert_int_equal(
            kh_p11_import(r->session, material->pkcs8, material->pkcs8_len, &locator, KH_USAGE_TLS_SERVER),
            KH_OK);
        assert_int_equal(kh_p11_public(r->session, &locator, spki, &spki_len), KH_OK);
        assert_int_equal(spki_len, material->spki_len);
        assert_memory_equal(spki, material->spki, spki_len);
        sign_all(r, &locator, spki, spki_len, &kinds[i]);
        assert_int_equal(kh_p11_destroy(r->session, &locator), KH_OK);
    }
    kh_material_wipe(material);
    free(material);
}

static void decrypts_raw(void **state)
{
    rig *r = *state;
    kh_p11_locator locator = rig_locator(64, "kx"), signs_only = rig_locator(65, "signs");
    uint8_t spki[KH_SPKI_MAX], plain[256] = {0, 2, 3}, sealed[256], out[KH_SIGNATURE_MAX];
    const uint8_t *at = spki;
    size_t spki_len = 0, len = sizeof(sealed);
    kh_p11_key key;
    EVP_PKEY *pkey = NULL;
    EVP_PKEY_CTX *ctx = NULL;

    assert_int_equal(
        kh_p11_generate(r->session, KH_KEY_RSA, 2048, &locator, KH_USAGE_TLS_RSA_KX, spki, &spki_len), KH_OK);
    assert_int_equal(kh_p11_find(r->session, &locator, &key), KH_OK);
    pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    ctx = EVP_PKEY_CTX_new(pkey, NULL);
    assert_int_equal(EVP_PKEY_encrypt_init(ctx), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_NO_PADDING), 1);
    assert_int_equal(EVP_PKEY_encrypt(ctx, sealed, &len, plain, sizeof(plain)), 1);
    assert_int_equal(kh_p11_rsa_raw(r->session, &key, sealed, len, out, &len), KH_OK);
    assert_int_equal(len, sizeof(plain));
    assert_memory_equal(out, plain, len);
    assert_int_equal(kh_p11_rsa_raw(r->session, &key, sealed, 255, out, &len), KH_E_INVALID);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(pkey);

    /* A key that was made for signing decrypts nothing: the token itself says so. */
    assert_int_equal(
        kh_p11_generate(r->session, KH_KEY_RSA, 2048, &signs_only, KH_USAGE_TLS_SERVER, spki, &spki_len),
        KH_OK);
    assert_int_equal(kh_p11_find(r->session, &signs_only, &key), KH_OK);
    assert_int_equal(kh_p11_rsa_raw(r->session, &key, sealed, sizeof(sealed), out, &len), KH_E_USAGE);
    assert_string_equal(kh_p11_session_error(r->session), "C_DecryptInit: CKR_KEY_FUNCTION_NOT_PERMITTED");
    assert_int_equal(kh_p11_session_heal(r->session), KH_HEAL_NONE);
    assert_int_equal(kh_p11_destroy(r->session, &locator), KH_OK);
    assert_int_equal(kh_p11_destroy(r->session, &signs_only), KH_OK);
}

static void finds_exactly_one(void **state)
{
    rig *r = *state;
    kh_p11_locator first = rig_locator(70, "twin"), second = rig_locator(71, "twin"),
                   by_label = {.label = "twin"}, nothing = {.id_len = 0};
    uint8_t spki[KH_SPKI_MAX];
    size_t len = 0;
    kh_p11_key key;

    assert_int_equal(kh_p11_generate(r->session, KH_KEY_P256, 256, &first, KH_USAGE_SIGN, spki, &len), KH_OK);
    assert_int_equal(kh_p11_generate(r->session, KH_KEY_P256, 256, &second, KH_USAGE_SIGN, spki, &len),
                     KH_OK);
    assert_int_equal(kh_p11_find(r->session, &first, &key), KH_OK);
    assert_int_equal(kh_p11_find(r->session, &by_label, &key), KH_E_INVALID);
    assert_int_equal(kh_p11_find(r->session, &nothing, &key), KH_E_INVALID);
    assert_int_equal(kh_p11_destroy(r->session, &by_label), KH_E_INVALID);
    assert_int_equal(kh_p11_destroy(r->session, &first), KH_OK);
    assert_int_equal(kh_p11_find(r->session, &by_label, &key), KH_OK);
    assert_int_equal(kh_p11_destroy(r->session, &second), KH_OK);
}

static void refuses_what_it_cannot_make(void **state)
{
    rig *r = *state;
    kh_p11_locator locator = rig_locator(72, "odd");
    uint8_t spki[KH_SPKI_MAX];
    size_t len = 0;

    assert_int_equal(kh_p11_generate(r->session, KH_KEY_RSA, 1024, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNSUPPORTED);
    assert_int_equal(kh_p11_generate(r->session, 99, 256, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNSUPPORTED);
    assert_int_equal(kh_p11_import(r->session, message, sizeof(message), &locator, KH_USAGE_SIGN),
                     KH_E_MALFORMED);
}

/* The session is closed behind our back, as a token does that lost it: renewed, and it signs on; the login
 * too. */
static void renews_sessions(void **state)
{
    rig *r = *state;
    kh_p11_locator locator = rig_locator(73, "renewed");
    uint8_t spki[KH_SPKI_MAX], out[KH_SIGNATURE_MAX];
    size_t spki_len = 0, len = 0;
    kh_p11_key key;

    assert_int_equal(kh_p11_generate(r->session, KH_KEY_P256, 256, &locator, KH_USAGE_SIGN, spki, &spki_len),
                     KH_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(kh_p11_session_renew(r->session), KH_OK);
    }
    assert_int_equal(kh_p11_login(r->p11), KH_OK);
    assert_int_equal(kh_p11_alive(r->session), KH_OK);
    assert_int_equal(kh_p11_find(r->session, &locator, &key), KH_OK);
    assert_int_equal(
        kh_p11_sign(r->session, &key, KH_ECDSA_SHA256, false, message, sizeof(message), out, &len), KH_OK);
    assert_true(rig_verify(spki, spki_len, KH_ECDSA_SHA256, message, sizeof(message), out, len));
    key.handle = 0x7fff0000;
    assert_int_equal(
        kh_p11_sign(r->session, &key, KH_ECDSA_SHA256, false, message, sizeof(message), out, &len),
        KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r->session), KH_HEAL_OBJECT);
    assert_int_equal(
        kh_p11_sign(r->session, &key, KH_ECDSA_SHA256, false, message, sizeof(message), out, &len),
        KH_E_UNAVAILABLE);
    assert_int_equal(kh_p11_session_heal(r->session), KH_HEAL_TOKEN);
    assert_int_equal(kh_p11_find(r->session, &locator, &key), KH_OK);
    assert_int_equal(
        kh_p11_sign(r->session, &key, KH_ECDSA_SHA256, false, message, sizeof(message), out, &len), KH_OK);
    assert_int_equal(kh_p11_destroy(r->session, &locator), KH_OK);
}

static void says_what_is_wrong_at_opening(void **state)
{
    kh_p11_config config = {.module = "/nonexistent.so", .pin = (const uint8_t *)"4321", .pin_len = 4};
    kh_p11 *p11 = NULL;
    kh_p11_session *session = NULL;
    uint8_t long_pin[512] = {0};

    (void)state;
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_NOT_FOUND);
    assert_null(p11);
    config.module = "/lib/x86_64-linux-gnu/libm.so.6";
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_NOT_FOUND);
    config.module = rig_softhsm();
    config.label = "no such token";
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_NOT_FOUND);
    config.label = NULL;
    config.serial = "ffffffffffffffff";
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_NOT_FOUND);
    config.serial = NULL;
    config.pin = long_pin;
    config.pin_len = sizeof(long_pin);
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_INVALID);

    /* The wrong PIN is tried once; a token without a login has no private keys. */
    config.label = "pins";
    config.pin = (const uint8_t *)"4321";
    config.pin_len = 4;
    rig_token("pins");
    assert_int_equal(kh_p11_open(&config, &p11), KH_OK);
    assert_int_equal(kh_p11_login(p11), KH_E_PASSPHRASE);
    assert_int_equal(kh_p11_login(p11), KH_E_PASSPHRASE);
    assert_int_equal(kh_p11_session_new(p11, false, &session), KH_OK);
    kh_p11_session_free(session);
    kh_p11_close(p11);

    rig_token("pins");
    config.pin = NULL;
    assert_int_equal(kh_p11_open(&config, &p11), KH_E_INVALID);
    rig_clean();
}

int main(void)
{
    const struct CMUnitTest opening[] = {cmocka_unit_test(says_what_is_wrong_at_opening)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(makes_and_signs),
        cmocka_unit_test(brings_in_and_signs),
        cmocka_unit_test(decrypts_raw),
        cmocka_unit_test(finds_exactly_one),
        cmocka_unit_test(refuses_what_it_cannot_make),
        cmocka_unit_test(renews_sessions),
    };

    if (rig_softhsm() == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(opening, NULL, NULL) + cmocka_run_group_tests(tests, set_up, tear_down);
}
