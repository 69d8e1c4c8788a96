/* SPDX-License-Identifier: Apache-2.0 */
/* M8: the questions about usage, and their answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "usage_cases.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 4096
#define RANDOMS_LEN 64

static void expect(usage_asker *a, bool may, uint32_t usage, uint32_t type, uint32_t scheme,
                   const uint8_t *data, size_t len, const char *what)
{
    kh_result result = a->ask(a->ctx, usage, type, scheme, false, data, len);

    if (result != (may ? KH_OK : KH_E_USAGE)) {
        print_error("%s: %s, usage %#x, scheme %#x, %zu bytes\n", what, kh_result_name(result), usage, scheme,
                    len);
    }
    assert_int_equal(result, may ? KH_OK : KH_E_USAGE);
    a->accepted += may;
    a->refused += !may;
}

/* Changes data[at] to every other value (or flips each bit) and asks each time. */
static void mutate(usage_asker *a, bool may, uint32_t usage, uint32_t type, uint32_t scheme, uint8_t *data,
                   size_t len, size_t at, const char *what)
{
    uint8_t was = data[at];

    for (unsigned i = 1; i < 256; i = a->thorough ? i + 1 : i * 2) {
        data[at] = was ^ (uint8_t)i;
        expect(a, may, usage, type, scheme, data, len, what);
    }
    data[at] = was;
}

/* Every other length: cut, and with bytes after it. */
static void lengths(usage_asker *a, uint32_t usage, uint32_t type, uint32_t scheme, const uint8_t *data,
                    size_t len, const char *what)
{
    uint8_t longer[MESSAGE_MAX + 64];

    memcpy(longer, data, len);
    memset(longer + len, 0x41, 64);
    for (size_t n = 0; n < len; n++) {
        expect(a, false, usage, type, scheme, data, n, what);
    }
    for (size_t n = 1; n <= 64; n++) {
        expect(a, false, usage, type, scheme, longer, len + n, what);
    }
}

/* ---- TLS 1.3 ------------------------------------------------------------------------------------------- */

static size_t tls13(uint8_t *data, const char *side, size_t hash_len)
{
    size_t n = 64;

    memset(data, ' ', 64);
    n += (size_t)sprintf((char *)data + 64, "TLS 1.3, %s CertificateVerify", side) + 1;
    RAND_bytes(data + n, (int)hash_len);
    return n + hash_len;
}

void usage_cases_tls13(usage_asker *a)
{
    static const struct {
        uint32_t scheme, type;
        bool may;
    } pairs[] = {
        {KH_RSA_PKCS1_SHA256, KH_KEY_RSA, false},   {KH_RSA_PKCS1_SHA384, KH_KEY_RSA, false},
        {KH_RSA_PKCS1_SHA512, KH_KEY_RSA, false},   {KH_RSA_PSS_RSAE_SHA256, KH_KEY_RSA, true},
        {KH_RSA_PSS_RSAE_SHA384, KH_KEY_RSA, true}, {KH_RSA_PSS_RSAE_SHA512, KH_KEY_RSA, true},
        {KH_ECDSA_SHA256, KH_KEY_P256, true},       {KH_ECDSA_SHA384, KH_KEY_P256, false},
        {KH_ECDSA_SHA512, KH_KEY_P256, false},      {KH_ECDSA_SHA256, KH_KEY_P384, false},
        {KH_ECDSA_SHA384, KH_KEY_P384, true},       {KH_ECDSA_SHA512, KH_KEY_P384, false},
        {KH_ECDSA_SHA256, KH_KEY_P521, false},      {KH_ECDSA_SHA384, KH_KEY_P521, false},
        {KH_ECDSA_SHA512, KH_KEY_P521, true},       {KH_ED25519, KH_KEY_ED25519, true},
    };
    static const struct {
        uint32_t usage;
        const char *side;
    } sides[] = {{KH_USAGE_TLS_SERVER, "server"}, {KH_USAGE_TLS_CLIENT, "client"}};
    uint8_t data[MESSAGE_MAX];

    for (size_t s = 0; s < 2; s++) {
        uint32_t usage = sides[s].usage;

        for (size_t hash_len = 0; hash_len <= 70; hash_len++) {
            size_t len = tls13(data, sides[s].side, hash_len);

            expect(a, hash_len == 32 || hash_len == 48, usage, KH_KEY_P256, KH_ECDSA_SHA256, data, len,
                   "TLS 1.3, length of hash");
        }
        for (size_t hash_len = 32; hash_len <= 48; hash_len += 16) {
            size_t len = tls13(data, sides[s].side, hash_len);

            for (size_t p = 0; p < sizeof(pairs) / sizeof(pairs[0]); p++) {
                expect(a, pairs[p].may, usage, pairs[p].type, pairs[p].scheme, data, len, "TLS 1.3, scheme");
            }
            expect(a, false, usage == KH_USAGE_TLS_SERVER ? KH_USAGE_TLS_CLIENT : KH_USAGE_TLS_SERVER,
                   KH_KEY_P256, KH_ECDSA_SHA256, data, len, "TLS 1.3, the other side");
            expect(a, true, KH_USAGE_TLS_SERVER | KH_USAGE_TLS_CLIENT, KH_KEY_P256, KH_ECDSA_SHA256, data,
                   len, "TLS 1.3, both");
            expect(a, false, KH_USAGE_TLS_DHE, KH_KEY_P256, KH_ECDSA_SHA256, data, len,
                   "TLS 1.3, another usage");
        }
        for (size_t hash_len = 32; hash_len <= 48; hash_len += 16) {
            size_t len = tls13(data, sides[s].side, hash_len), fixed = len - hash_len;

            for (size_t at = 0; at < len; at++) {
                mutate(a, at >= fixed, usage, KH_KEY_P256, KH_ECDSA_SHA256, data, len, at, "TLS 1.3, byte");
            }
            for (size_t n = 0; n < fixed; n++) {
                expect(a, false, usage, KH_KEY_P256, KH_ECDSA_SHA256, data, n, "TLS 1.3, cut");
            }
        }
    }
}

/* ---- TLS 1.2 ECDHE ------------------------------------------------------------------------------------- */

static const struct {
    uint16_t group;
    uint8_t point_len;
    bool uncompressed;
} curves[] = {{23, 65, true}, {24, 97, true}, {25, 133, true}, {29, 32, false}, {30, 56, false}};

static size_t ecdhe(uint8_t *data, size_t c)
{
    RAND_bytes(data, 64);
    data[0] = 0x77; /* not the beginning of a SEQUENCE */
    data[64] = 3;
    data[65] = 0;
    data[66] = (uint8_t)curves[c].group;
    data[67] = curves[c].point_len;
    RAND_bytes(data + 68, curves[c].point_len);
    if (curves[c].uncompressed) {
        data[68] = 4;
    }
    return 68 + (size_t)curves[c].point_len;
}

void usage_cases_ecdhe(usage_asker *a)
{
    static const struct {
        uint32_t scheme, type;
    } pairs[] = {{KH_RSA_PKCS1_SHA256, KH_KEY_RSA}, {KH_RSA_PSS_RSAE_SHA256, KH_KEY_RSA},
                 {KH_ECDSA_SHA256, KH_KEY_P256},    {KH_ECDSA_SHA384, KH_KEY_P256},
                 {KH_ECDSA_SHA512, KH_KEY_P384},    {KH_ED25519, KH_KEY_ED25519}};
    uint8_t data[MESSAGE_MAX];
    const uint32_t usage = KH_USAGE_TLS_SERVER, scheme = KH_ECDSA_SHA256, type = KH_KEY_P256;

    for (size_t c = 0; c < sizeof(curves) / sizeof(curves[0]); c++) {
        size_t len = ecdhe(data, c);

        for (size_t p = 0; p < sizeof(pairs) / sizeof(pairs[0]); p++) {
            expect(a, true, usage, pairs[p].type, pairs[p].scheme, data, len, "ECDHE");
        }
        expect(a, false, KH_USAGE_TLS_CLIENT | KH_USAGE_TLS_DHE, type, scheme, data, len,
               "ECDHE, another usage");
        for (size_t at = 1; at < 64; at++) {
            mutate(a, true, usage, type, scheme, data, len, at, "ECDHE, random");
        }
        mutate(a, false, usage, type, scheme, data, len, 64, "ECDHE, curve type");
        for (unsigned group = 0; group < 65536; group += a->thorough ? 1 : group < 64 ? 1 : 251) {
            data[65] = (uint8_t)(group >> 8);
            data[66] = (uint8_t)group;
            expect(a, group == curves[c].group, usage, type, scheme, data, len, "ECDHE, group");
        }
        data[65] = 0;
        data[66] = (uint8_t)curves[c].group;
        mutate(a, false, usage, type, scheme, data, len, 67, "ECDHE, length of the point");
        mutate(a, !curves[c].uncompressed, usage, type, scheme, data, len, 68, "ECDHE, form of the point");
        for (size_t at = 69; at < len; at++) {
            mutate(a, true, usage, type, scheme, data, len, at, "ECDHE, point");
        }
        lengths(a, usage, type, scheme, data, len, "ECDHE, length");
    }
}

/* ---- TLS 1.2 DHE --------------------------------------------------------------------------------------- */

static size_t prime_of(const char *name, uint8_t *prime)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "DH", NULL);
    EVP_PKEY *pkey = NULL;
    BIGNUM *p = NULL;
    char group[32];
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
                           OSSL_PARAM_construct_end()};
    size_t len = 0;

    snprintf(group, sizeof(group), "%s", name);
    assert_int_equal(EVP_PKEY_fromdata_init(ctx), 1);
    assert_int_equal(EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEY_PARAMETERS, params), 1);
    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_FFC_P, &p), 1);
    len = (size_t)BN_bn2bin(p, prime);
    BN_free(p);
    EVP_PKEY_free(pkey);
    EVP_PKEY_CTX_free(ctx);
    return len;
}

static size_t put_vector(uint8_t *at, const uint8_t *bytes, size_t len)
{
    at[0] = (uint8_t)(len >> 8);
    at[1] = (uint8_t)len;
    memcpy(at + 2, bytes, len);
    return len + 2;
}

static size_t dhe(uint8_t *data, const uint8_t *p, size_t p_len, const uint8_t *g, size_t g_len,
                  const uint8_t *y, size_t y_len)
{
    size_t n = 64;

    memset(data, 0x77, 64);
    n += put_vector(data + n, p, p_len);
    n += put_vector(data + n, g, g_len);
    n += put_vector(data + n, y, y_len);
    return n;
}

void usage_cases_dhe(usage_asker *a)
{
    static const struct {
        const char *name;
        bool may;
    } groups[] = {{"ffdhe2048", true}, {"ffdhe3072", true}, {"ffdhe4096", true},  {"ffdhe6144", true},
                  {"ffdhe8192", true}, {"modp_2048", true}, {"modp_3072", true},  {"modp_4096", true},
                  {"modp_6144", true}, {"modp_8192", true}, {"modp_1536", false}, {"dh_2048_256", false}};
    const uint32_t usage = KH_USAGE_TLS_DHE, scheme = KH_RSA_PKCS1_SHA256, type = KH_KEY_RSA;
    const uint8_t two[] = {2}, five[] = {5}, wide[] = {0, 2};
    uint8_t p[1024], y[1025], data[MESSAGE_MAX];

    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        size_t p_len = prime_of(groups[i].name, p), len = 0;

        RAND_bytes(y, sizeof(y));
        y[0] = 0x7f;
        len = dhe(data, p, p_len, two, 1, y, p_len);
        expect(a, groups[i].may, usage, type, scheme, data, len, groups[i].name);
        if (!groups[i].may) {
            continue;
        }
        expect(a, false, KH_USAGE_TLS_SERVER | KH_USAGE_TLS_CLIENT, type, scheme, data, len,
               "DHE without tls-dhe");
        for (size_t at = 64; at < 64 + 2 + p_len + 2 + 1 + 2; at++) {
            uint8_t was = data[at];

            data[at] ^= (uint8_t)(1u << (at % 8));
            expect(a, false, usage, type, scheme, data, len, "DHE, group or length");
            data[at] = was;
        }
        for (size_t at = 1; at < 64; at++) {
            data[at] ^= 0x55;
            expect(a, true, usage, type, scheme, data, len, "DHE, random");
        }
        for (size_t n = 0; n < len; n += i == 0 ? 1 : 97) {
            expect(a, false, usage, type, scheme, data, n, "DHE, cut");
        }
        expect(a, false, usage, type, scheme, data, len + 1, "DHE, longer");
        expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, five, 1, y, p_len), "DHE, g");
        expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, wide, 2, y, p_len),
               "DHE, g with a zero");
        expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, two, 0, y, p_len), "DHE, no g");
        expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y, 0), "DHE, no Ys");
        expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y, p_len + 1),
               "DHE, Ys longer than p");
        /* 1 < Ys < p - 1, to the last value; as long as p, and shorter. */
        for (unsigned value = 0; value < 4; value++) {
            memset(y, 0, p_len);
            y[p_len - 1] = (uint8_t)value;
            expect(a, value >= 2, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y, p_len),
                   "DHE, small Ys");
            expect(a, value >= 2, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y + p_len - 1, 1),
                   "DHE, short Ys");
            expect(a, false, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y + p_len - 2, 2),
                   "DHE, short Ys with a zero");
        }
        for (int less = -1; less < 4; less++) {
            memcpy(y, p, p_len);
            if (less >= 0) {
                y[p_len - 1] = (uint8_t)(p[p_len - 1] - less); /* the last byte of each prime is 0xff */
            } else {
                memset(y, 0xff, p_len); /* above every one of the primes */
            }
            expect(a, less >= 2, usage, type, scheme, data, dhe(data, p, p_len, two, 1, y, p_len),
                   "DHE, large Ys");
        }
    }
}

/* ---- The randoms spell a certificate ------------------------------------------------------------------- */

/* Writes an outer header of `bytes` length bytes (0: the short form) for the message, and says how long it is. */
static size_t outer_header(uint8_t *data, size_t len, uint8_t tag, unsigned bytes)
{
    size_t value = len - 2 - bytes;

    data[0] = tag;
    data[1] = (uint8_t)(bytes == 0 ? value : 0x80 | bytes);
    for (unsigned i = bytes; i > 0; i--, value >>= 8) {
        data[1 + i] = (uint8_t)value;
    }
    return 2 + bytes;
}

/* The randoms after `at` as one element that leaves `params` to a last one, an OCTET STRING; the header is written. */
static void elements_inside(uint8_t *data, size_t at, size_t len)
{
    /* The last element: its header ends right before the fixed bytes, which it has as its content. */
    size_t rest = len - RANDOMS_LEN, header = rest < 128 ? 2 : rest < 256 ? 3 : 4;
    size_t first = RANDOMS_LEN - header - at - 2;

    data[at] = 0x04;
    data[at + 1] = (uint8_t)first;
    data[RANDOMS_LEN - header] = 0x04;
    if (header == 2) {
        data[RANDOMS_LEN - 1] = (uint8_t)rest;
    } else if (header == 3) {
        data[RANDOMS_LEN - 2] = 0x81;
        data[RANDOMS_LEN - 1] = (uint8_t)rest;
    } else {
        data[RANDOMS_LEN - 3] = 0x82;
        data[RANDOMS_LEN - 2] = (uint8_t)(rest >> 8);
        data[RANDOMS_LEN - 1] = (uint8_t)rest;
    }
}

static void der_of_curve(usage_asker *a, uint8_t *data, size_t len, uint8_t tag, unsigned bytes)
{
    const uint32_t usage = KH_USAGE_TLS_SERVER, type = KH_KEY_P256, scheme = KH_ECDSA_SHA256;
    bool constructed = tag == 0x30 || tag == 0x31;
    size_t at = outer_header(data, len, tag, bytes);

    elements_inside(data, at, len);
    expect(a, !constructed, usage, type, scheme, data, len, "DER");
    data[1 + bytes] ^= 1;
    expect(a, true, usage, type, scheme, data, len, "DER, outer length off by one");
    data[1 + bytes] ^= 1;
    size_t first = data[at + 1];
    memset(data + at + 2, 0xff, first);
    data[at + 1] = 0x84;
    expect(a, true, usage, type, scheme, data, len, "the header of a SEQUENCE, and no elements in it");
    data[at + 1] = (uint8_t)first;
    /* The first element constructed too: what it contains must be elements then. */
    data[at] = 0xa0;
    expect(a, true, usage, type, scheme, data, len, "an element that is no element inside");
    memset(data + at + 2, 0, first);
    data[at + 2] = 0x02;
    data[at + 3] = (uint8_t)(first - 2);
    expect(a, !constructed, usage, type, scheme, data, len, "DER, elements in elements");
    data[at + 1] = 0x80; /* all the rest is in it */
    expect(a, !constructed, usage, type, scheme, data, len, "BER, indefinite length inside");
}

void usage_cases_der(usage_asker *a)
{
    const uint8_t two[] = {2};
    uint8_t data[MESSAGE_MAX], p[1024], y[1024];

    for (size_t c = 0; c < sizeof(curves) / sizeof(curves[0]); c++) {
        size_t len = ecdhe(data, c);

        for (unsigned tag = 0; tag < 256; tag++) {
            if (a->sparse && tag % 16 != 0 && tag != 0x31) { /* SEQUENCE is 0x30, SET 0x31 */
                continue;
            }
            if (len - 2 < 128) {
                der_of_curve(a, data, len, (uint8_t)tag, 0);
            }
            for (unsigned bytes = 1; bytes <= 40; bytes++) { /* what BER allows too */
                der_of_curve(a, data, len, (uint8_t)tag, bytes);
            }
        }
        /* Indefinite length: the elements, and the end-of-contents at the end of the point. */
        data[0] = 0x30;
        data[1] = 0x80;
        elements_inside(data, 2, len);
        expect(a, false, KH_USAGE_TLS_SERVER, KH_KEY_P256, KH_ECDSA_SHA256, data, len, "BER, indefinite length");
    }
    size_t p_len = prime_of("ffdhe2048", p);
    RAND_bytes(y, sizeof(y));
    y[0] = 0x7f;
    size_t len = dhe(data, p, p_len, two, 1, y, p_len);
    elements_inside(data, outer_header(data, len, 0x30, 2), len);
    expect(a, false, KH_USAGE_TLS_DHE, KH_KEY_RSA, KH_RSA_PKCS1_SHA256, data, len, "DER, DHE");
    data[3] ^= 1;
    expect(a, true, KH_USAGE_TLS_DHE, KH_KEY_RSA, KH_RSA_PKCS1_SHA256, data, len, "DER, DHE, off by one");
}

/* ---- TLS 1.2, client ----------------------------------------------------------------------------------- */

typedef struct message {
    uint8_t type;
    uint16_t len;
} message;

static size_t transcript(uint8_t *data, const message *messages, size_t count)
{
    size_t n = 0;

    for (size_t i = 0; i < count; i++) {
        data[n++] = messages[i].type;
        data[n++] = 0;
        data[n++] = (uint8_t)(messages[i].len >> 8);
        data[n++] = (uint8_t)messages[i].len;
        memset(data + n, 0x42, messages[i].len);
        if (messages[i].type == 1 || messages[i].type == 2) {
            data[n] = data[n + 1] = 3;
        }
        n += messages[i].len;
    }
    return n;
}

static bool may_be_left_out(uint8_t type)
{
    return type == 22 || type == 12;
}

/* A message that is exactly so much longer that it contains those after it, which may be left out: another
 * good transcript. */
static bool swallows(const message *messages, size_t count, size_t i, size_t len)
{
    size_t longer = messages[i].len;

    for (size_t next = i + 1; next < count && may_be_left_out(messages[next].type); next++) {
        longer += 4 + messages[next].len;
        if (longer == len) {
            return true;
        }
    }
    return false;
}

void usage_cases_tls12_client(usage_asker *a)
{
    static const message full[] = {{1, 60},  {2, 50}, {11, 90}, {22, 30}, {12, 70},
                                   {13, 20}, {14, 0}, {11, 3},  {16, 33}};
    static const message least[] = {{1, 38}, {2, 38}, {11, 10}, {13, 5}, {14, 0}, {11, 3}, {16, 1}};
    const uint32_t usage = KH_USAGE_TLS_CLIENT, type = KH_KEY_P256, scheme = KH_ECDSA_SHA256;
    const size_t count = sizeof(full) / sizeof(full[0]);
    uint8_t data[MESSAGE_MAX];
    size_t len = transcript(data, full, count), at = 0;
    message some[16];

    expect(a, true, usage, type, scheme, data, len, "client, full");
    expect(a, true, usage, KH_KEY_RSA, KH_RSA_PKCS1_SHA256, data, len, "client, full, RSA");
    expect(a, false, KH_USAGE_TLS_SERVER | KH_USAGE_TLS_DHE, type, scheme, data, len,
           "client, another usage");
    for (size_t i = 0; i < count; i++) {
        mutate(a, false, usage, type, scheme, data, len, at, "client, message type");
        for (unsigned bit = 0; bit < 24; bit++) {
            data[at + 3 - bit / 8] ^= (uint8_t)(1u << bit % 8);
            expect(a, false, usage, type, scheme, data, len, "client, message length");
            data[at + 3 - bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        for (unsigned low = 0; low < 256; low++) {
            data[at + 3] = (uint8_t)low;
            expect(a, low == full[i].len || swallows(full, count, i, low), usage, type, scheme, data, len,
                   "client, message length");
        }
        data[at + 3] = (uint8_t)full[i].len;
        for (size_t b = 0; b < full[i].len; b++) {
            bool version = i < 2 && b < 2;

            mutate(a, !version, usage, type, scheme, data, len, at + 4 + b, "client, message body");
        }
        at += 4 + full[i].len;
    }
    lengths(a, usage, type, scheme, data, len, "client, length");
    for (size_t i = 0; i < count; i++) { /* one left out, one twice, two swapped */
        bool optional = may_be_left_out(full[i].type);

        memcpy(some, full, sizeof(full));
        memmove(some + i, some + i + 1, (count - i - 1) * sizeof(some[0]));
        expect(a, optional, usage, type, scheme, data, transcript(data, some, count - 1),
               "client, one left out");
        memcpy(some, full, i * sizeof(some[0]));
        some[i] = full[i];
        memcpy(some + i + 1, full + i, (count - i) * sizeof(some[0]));
        expect(a, false, usage, type, scheme, data, transcript(data, some, count + 1), "client, one twice");
        if (i + 1 < count) {
            memcpy(some, full, sizeof(full));
            some[i] = full[i + 1];
            some[i + 1] = full[i];
            expect(a, false, usage, type, scheme, data, transcript(data, some, count), "client, two swapped");
        }
    }
    len = transcript(data, least, sizeof(least) / sizeof(least[0]));
    expect(a, true, usage, type, scheme, data, len, "client, least");
    memcpy(some, least, sizeof(least));
    some[0].len = 37;
    expect(a, false, usage, type, scheme, data, transcript(data, some, sizeof(least) / sizeof(least[0])),
           "client, short hello");
    memcpy(some, least, sizeof(least));
    some[4].len = 1;
    expect(a, false, usage, type, scheme, data, transcript(data, some, sizeof(least) / sizeof(least[0])),
           "client, done with a body");
}

/* ---- What is signed elsewhere -------------------------------------------------------------------------- */

static size_t tbs_certificate(uint8_t *der)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    X509 *cert = X509_new();
    unsigned char *out = NULL;
    int len = 0;

    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 7);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const uint8_t *)"victim.example", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_set_pubkey(cert, pkey);
    assert_true(X509_sign(cert, pkey, EVP_sha256()) > 0);
    len = i2d_re_X509_tbs(cert, &out);
    assert_true(len > 0 && len < MESSAGE_MAX);
    memcpy(der, out, (size_t)len);
    OPENSSL_free(out);
    X509_free(cert);
    EVP_PKEY_free(pkey);
    return (size_t)len;
}

void usage_cases_foreign(usage_asker *a)
{
    const uint32_t all_but_sign = KH_USAGE_ALL & ~(uint32_t)KH_USAGE_SIGN;
    static const struct {
        uint32_t scheme, type;
    } pairs[] = {{KH_RSA_PKCS1_SHA256, KH_KEY_RSA},
                 {KH_RSA_PSS_RSAE_SHA512, KH_KEY_RSA},
                 {KH_ECDSA_SHA256, KH_KEY_P256},
                 {KH_ECDSA_SHA384, KH_KEY_P384},
                 {KH_ED25519, KH_KEY_ED25519}};
    uint8_t data[MESSAGE_MAX];
    size_t tbs_len = tbs_certificate(data);

    for (size_t p = 0; p < sizeof(pairs) / sizeof(pairs[0]); p++) {
        uint32_t usage =
            pairs[p].type == KH_KEY_RSA
                ? all_but_sign
                : all_but_sign & ~(uint32_t)(KH_USAGE_TLS_RSA_KX | KH_USAGE_DECRYPT | KH_USAGE_WRAP);
        uint8_t other[MESSAGE_MAX];
        static const char *const texts[] = {"", "x", "{\"alg\":\"ES256\"}.{}", "-----BEGIN"};

        expect(a, false, usage, pairs[p].type, pairs[p].scheme, data, tbs_len, "TBSCertificate");
        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
            expect(a, false, usage, pairs[p].type, pairs[p].scheme, (const uint8_t *)texts[i],
                   strlen(texts[i]), "text");
        }
        for (size_t len = 16; len <= 64; len += 4) { /* a digest, as a message and as a digest */
            RAND_bytes(other, (int)len);
            expect(a, false, usage, pairs[p].type, pairs[p].scheme, other, len, "digest");
            assert_int_equal(a->ask(a->ctx, usage, pairs[p].type, pairs[p].scheme, true, other, len),
                             KH_E_USAGE);
            a->refused++;
        }
        /* Nor may a digest pass as one of a message that could be signed. */
        size_t len = tls13(other, "server", 32);
        assert_int_equal(a->ask(a->ctx, usage, pairs[p].type, pairs[p].scheme, true, other, len), KH_E_USAGE);
        a->refused++;
    }
}

void usage_cases_sign(usage_asker *a)
{
    uint8_t data[MESSAGE_MAX];
    size_t len = tbs_certificate(data);

    expect(a, true, KH_USAGE_SIGN, KH_KEY_P256, KH_ECDSA_SHA256, data, len, "sign");
    expect(a, true, KH_USAGE_SIGN, KH_KEY_P256, KH_ECDSA_SHA256, data, 0, "sign nothing");
    for (size_t n = 0; n <= 70; n++) {
        assert_int_equal(a->ask(a->ctx, KH_USAGE_SIGN, KH_KEY_P256, KH_ECDSA_SHA384, true, data, n),
                         n == 48 ? KH_OK : KH_E_INVALID);
        assert_int_equal(a->ask(a->ctx, KH_USAGE_SIGN, KH_KEY_ED25519, KH_ED25519, true, data, n),
                         KH_E_INVALID);
    }
    assert_int_equal(a->ask(a->ctx, KH_USAGE_SIGN, KH_KEY_P256, KH_RSA_PKCS1_SHA256, false, data, len),
                     KH_E_SCHEME);
    assert_int_equal(a->ask(a->ctx, KH_USAGE_SIGN, KH_KEY_RSA, KH_ED25519, false, data, len), KH_E_SCHEME);
    assert_int_equal(a->ask(a->ctx, KH_USAGE_SIGN, KH_KEY_RSA, 0x0201, false, data, len), KH_E_UNSUPPORTED);
}
