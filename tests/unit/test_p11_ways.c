/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens that have less: each way to a signature verifies, and where there is none the refusal says so. */
#include "p11_rig.h"

#include "p11_encode.h"

#include <p11-kit/pkcs11.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const uint8_t message[] = "what a TLS server signs";

static kh_result sign(kh_p11_session *session, const kh_p11_key *key, uint32_t scheme, const uint8_t *spki,
                      size_t spki_len)
{
    uint8_t out[KH_SIGNATURE_MAX];
    size_t len = 0;
    kh_result result = kh_p11_sign(session, key, scheme, false, message, sizeof(message), out, &len);

    if (result == KH_OK) {
        assert_true(rig_verify(spki, spki_len, scheme, message, sizeof(message), out, len));
    }
    return result;
}

typedef struct lack {
    const char *rules;     /* what the token does not have */
    kh_result rsa, digest; /* of the RSA schemes, with a message and with a digest */
} lack;

/* 0x1: RSA_PKCS, 0x3: X_509, 0xd: PSS; 0x40 to 0x42: SHA*_RSA_PKCS, 0x43 to 0x45: SHA*_RSA_PKCS_PSS. */
static const lack lacks[] = {
    {"", KH_OK, KH_OK},
    {"hide 0x1\nhide 0xd\n", KH_OK, KH_OK}, /* the token hashes, or X_509 */
    {"hide 0x1\nhide 0xd\nhide 0x40\nhide 0x41\nhide 0x42\nhide 0x43\nhide 0x44\nhide 0x45\n", KH_OK,
     KH_OK}, /* X_509 alone */
    {"hide 0x1\nhide 0xd\nhide 0x3\n", KH_OK,
     KH_E_UNSUPPORTED}, /* the token hashes: digests cannot be signed */
    {"hide 0x1\nhide 0xd\nhide 0x3\nhide 0x40\nhide 0x41\nhide 0x42\nhide 0x43\nhide 0x44\nhide 0x45\n",
     KH_E_UNSUPPORTED, KH_E_UNSUPPORTED},
};

static void rsa_by_each_way(void **state)
{
    static const uint32_t schemes[] = {KH_RSA_PKCS1_SHA256,    KH_RSA_PKCS1_SHA384,
                                       KH_RSA_PKCS1_SHA512,    KH_RSA_PSS_RSAE_SHA256,
                                       KH_RSA_PSS_RSAE_SHA384, KH_RSA_PSS_RSAE_SHA512};
    kh_p11_locator locator = rig_locator(1, "rsa");
    uint8_t spki[KH_SPKI_MAX], digest[64] = {7}, out[KH_SIGNATURE_MAX];
    size_t spki_len = 0, len = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(lacks); i++) {
        kh_p11 *p11 = NULL;
        kh_p11_session *session = NULL;
        kh_p11_key key;

        rig_rules(lacks[i].rules);
        p11 = rig_open(KH_SHIM, "ways");
        assert_int_equal(kh_p11_session_new(p11, true, &session), KH_OK);
        if (i == 0) {
            assert_int_equal(
                kh_p11_generate(session, KH_KEY_RSA, 2048, &locator, KH_USAGE_SIGN, spki, &spki_len), KH_OK);
        }
        assert_int_equal(kh_p11_find(session, &locator, &key), KH_OK);
        for (size_t s = 0; s < COUNT(schemes); s++) {
            assert_int_equal(sign(session, &key, schemes[s], spki, spki_len), lacks[i].rsa);
            assert_int_equal(kh_p11_can(p11, KH_KEY_RSA, 2048, schemes[s]), lacks[i].rsa == KH_OK);
            assert_int_equal(kh_p11_sign(session, &key, schemes[s], true, digest,
                                         kh_scheme_hash_len((int)schemes[s]), out, &len),
                             lacks[i].digest);
        }
        kh_p11_session_free(session);
        kh_p11_close(p11);
    }
}

static void what_is_not_there_is_refused(void **state)
{
    kh_p11_locator locator = rig_locator(2, "none");
    kh_p11 *p11 = NULL;
    kh_p11_session *session = NULL;
    kh_p11_key key = {.handle = 1, .type = KH_KEY_RSA, .bits = 2048};
    uint8_t spki[KH_SPKI_MAX], block[256] = {0}, out[KH_SIGNATURE_MAX];
    size_t len = 0;

    (void)state;
    /* ECDSA, EdDSA, X_509, generators of RSA, EC and Edwards pairs. */
    rig_rules("hide 0x1041\nhide 0x1057\nhide 0x3\nhide 0x0\nhide 0x1040\nhide 0x1055\n");
    p11 = rig_open(KH_SHIM, "ways");
    assert_int_equal(kh_p11_session_new(p11, true, &session), KH_OK);
    assert_int_equal(kh_p11_generate(session, KH_KEY_RSA, 2048, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNSUPPORTED);
    assert_string_equal(kh_p11_session_error(session), "the token makes no rsa keys of 2048 bits");
    assert_int_equal(kh_p11_generate(session, KH_KEY_P256, 256, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNSUPPORTED);
    assert_int_equal(kh_p11_generate(session, KH_KEY_ED25519, 256, &locator, KH_USAGE_SIGN, spki, &len),
                     KH_E_UNSUPPORTED);
    assert_false(kh_p11_can(p11, KH_KEY_P256, 256, KH_ECDSA_SHA256));
    assert_false(kh_p11_can(p11, KH_KEY_ED25519, 256, KH_ED25519));
    assert_int_equal(kh_p11_rsa_raw(session, &key, block, sizeof(block), out, &len), KH_E_UNSUPPORTED);
    kh_p11_session_free(session);
    kh_p11_close(p11);
}

/* r and s with zeros in front, with the highest bit, and none at all. */
static void ecdsa_is_der(void **state)
{
    static const uint8_t rs[8] = {0x00, 0x00, 0x00, 0x7f, 0x80, 0x00, 0x00, 0x01},
                         zero_r[8] = {0, 0, 0, 0, 1}, zero_s[8] = {1},
                         der[] = {0x30, 0x0a, 0x02, 0x01, 0x7f, 0x02, 0x05, 0x00, 0x80, 0x00, 0x00, 0x01};
    uint8_t longest[132], out[150];

    (void)state;
    assert_int_equal(kh_encode_ecdsa(rs, 4, out), sizeof(der));
    assert_memory_equal(out, der, sizeof(der));
    assert_int_equal(kh_encode_ecdsa(zero_r, 4, out), 0);
    assert_int_equal(kh_encode_ecdsa(zero_s, 4, out), 0);
    memset(longest, 0xff, sizeof(longest));
    assert_int_equal(kh_encode_ecdsa(longest, 66, out), 3 + 2 * (2 + 67));
}

static int set_up(void **state)
{
    (void)state;
    rig_token("ways");
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
        cmocka_unit_test(rsa_by_each_way),
        cmocka_unit_test(what_is_not_there_is_refused),
        cmocka_unit_test(ecdsa_is_der),
    };

    if (rig_softhsm() == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
