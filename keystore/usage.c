/* SPDX-License-Identifier: Apache-2.0 */
/* Which bytes a key may sign: see usage.h. */
#include "usage.h"

#include <keyhold/keystore.h>
#include <string.h>

#define RANDOMS_LEN 64
#define TLS13_PAD 64

/* A reader over bytes; `bad` sticks, and then everything reads as empty. */
typedef struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
} reader;

static const uint8_t *take(reader *r, size_t len)
{
    const uint8_t *bytes = r->at;

    if (r->bad || len > r->left) {
        r->bad = true;
        return NULL;
    }
    r->at += len;
    r->left -= len;
    return bytes;
}

static uint32_t take_number(reader *r, unsigned bytes)
{
    const uint8_t *at = take(r, bytes);
    uint32_t value = 0;

    for (unsigned i = 0; at != NULL && i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

/* ---- TLS 1.3 ------------------------------------------------------------------------------------------- */

static bool is_tls13(const uint8_t *data, size_t len, const char *label)
{
    size_t label_len = strlen(label);
    size_t fixed = TLS13_PAD + label_len + 1;

    if (len != fixed + 32 && len != fixed + 48) {
        return false;
    }
    for (size_t i = 0; i < TLS13_PAD; i++) {
        if (data[i] != 0x20) {
            return false;
        }
    }
    /* The terminating zero of the label is the separator of the message. */
    return memcmp(data + TLS13_PAD, label, label_len + 1) == 0;
}

static bool scheme_for_tls13(const kh_sign_question *q)
{
    switch (q->scheme) {
    case KH_RSA_PKCS1_SHA256:
    case KH_RSA_PKCS1_SHA384:
    case KH_RSA_PKCS1_SHA512:
        return false;
    default:
        return (uint32_t)kh_scheme_key_type((int)q->scheme) == q->key_type;
    }
}

/* ---- TLS 1.2, server ----------------------------------------------------------------------------------- */

#define DER_DEPTH 32 /* no structure that is signed nests deeper */

/*
 * One element off the front, as BER reads it: lengths that DER forbids count too, since what matters is what some
 * verifier might accept. One of indefinite length takes what is left, its end-of-contents as an element in it.
 */
static bool take_element(reader *r, uint8_t *tag, reader *content)
{
    uint8_t first = 0;
    size_t len = 0;

    *tag = (uint8_t)take_number(r, 1);
    if ((*tag & 0x1f) == 0x1f) { /* a tag's number in bytes of its own, the last of them below 0x80 */
        while (take_number(r, 1) >= 0x80) {
        }
    }
    first = (uint8_t)take_number(r, 1);
    len = first == 0x80 ? r->left : first;
    if (first > 0x80) {
        len = 0;
        for (unsigned i = 0; i < (first & 0x7fU) && len <= KH_MESSAGE_MAX; i++) {
            len = len << 8 | take_number(r, 1);
        }
    }
    *content = (reader){.at = take(r, len), .left = len};
    return !r->bad && (first != 0x80 || (*tag & 0x20) != 0);
}

/* Whether these are elements to the last byte, and what constructed ones contain again. Nested too deep: true. */
static bool are_elements(reader r, unsigned depth)
{
    reader content = {0};
    uint8_t tag = 0;

    while (r.left > 0) {
        if (!take_element(&r, &tag, &content) ||
            ((tag & 0x20) != 0 && depth < DER_DEPTH && !are_elements(content, depth + 1))) {
            return false;
        }
    }
    return true;
}

/*
 * Whether the whole could be read as one SEQUENCE or SET. Its header alone does not tell: by chance one in 32,768
 * of the messages with X25519 begins with the right one, and what is refused here is a handshake that fails. One
 * in about 3.5 million can be read to the end.
 */
static bool is_der_constructed(const uint8_t *data, size_t len)
{
    reader r = {.at = data, .left = len}, content = {0};
    uint8_t tag = 0;

    return take_element(&r, &tag, &content) && r.left == 0 && (tag == 0x30 || tag == 0x31) &&
           are_elements(content, 0);
}

/* X(group, length of the point, whether it begins with 4 for "uncompressed") */
#define ECDHE_GROUPS(X) X(23, 65, true) X(24, 97, true) X(25, 133, true) X(29, 32, false) X(30, 56, false)

static bool is_ecdhe(const uint8_t *data, size_t len)
{
    static const struct {
        uint16_t group;
        uint8_t point_len;
        bool uncompressed;
    } groups[] = {
#define ROW(group, point_len, uncompressed) {group, point_len, uncompressed},
        ECDHE_GROUPS(ROW)
#undef ROW
    };
    const uint8_t *params = data + RANDOMS_LEN;

    if (len < RANDOMS_LEN + 5 || params[0] != 3) {
        return false;
    }
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if ((params[1] << 8 | params[2]) == groups[i].group) {
            return params[3] == groups[i].point_len && len == RANDOMS_LEN + 4 + (size_t)groups[i].point_len &&
                   (!groups[i].uncompressed || params[4] == 4);
        }
    }
    return false;
}

/* 1 < y < p - 1, both big-endian. p is one of the known primes: odd, and its first byte is not zero. */
static bool dh_public_in_range(const uint8_t *y, size_t y_len, const uint8_t *p, size_t p_len)
{
    size_t lead = 0;
    int order = 0;

    /* As long as p, or shorter without a leading zero: one encoding of each value that is in use. */
    if (y_len == 0 || y_len > p_len || (y_len < p_len && y[0] == 0)) {
        return false;
    }
    while (lead < y_len && y[lead] == 0) {
        lead++;
    }
    if (lead == y_len || (lead == y_len - 1 && y[lead] <= 1)) {
        return false;
    }
    if (y_len < p_len) {
        return true;
    }
    /* p is odd, so p - 1 differs from it in the last byte alone. */
    order = memcmp(y, p, p_len - 1);
    return order < 0 || (order == 0 && y[p_len - 1] < p[p_len - 1] - 1);
}

static bool is_dhe(const uint8_t *data, size_t len)
{
    reader r = {.at = data, .left = len};
    const uint8_t *p = NULL, *g = NULL, *y = NULL;
    size_t p_len = 0, g_len = 0, y_len = 0;

    take(&r, RANDOMS_LEN);
    p_len = take_number(&r, 2);
    p = take(&r, p_len);
    g_len = take_number(&r, 2);
    g = take(&r, g_len);
    y_len = take_number(&r, 2);
    y = take(&r, y_len);
    return !r.bad && r.left == 0 && kh_dh_group_known(p, p_len, g, g_len) &&
           dh_public_in_range(y, y_len, p, p_len);
}

/* ---- TLS 1.2, client ----------------------------------------------------------------------------------- */

#define TLS12 0x0303
#define HELLO_LEN_MIN 38 /* version, random, empty session id, one cipher suite and compression */

/*
 * The messages of a full handshake that asks for a client's certificate, in their order (RFC 5246, 7.3; RFC
 * 6066, 8; RFC 4680). CertificateVerify signs all before itself, so the run ends with ClientKeyExchange.
 * X(message type, required)
 */
#define HANDSHAKE_ORDER(X)                                                                                   \
    X(1, true)   /* ClientHello */                                                                           \
    X(2, true)   /* ServerHello */                                                                           \
    X(23, false) /* SupplementalData */                                                                      \
    X(11, true)  /* Certificate of the server */                                                             \
    X(22, false) /* CertificateStatus */                                                                     \
    X(12, false) /* ServerKeyExchange */                                                                     \
    X(13, true)  /* CertificateRequest */                                                                    \
    X(14, true)  /* ServerHelloDone */                                                                       \
    X(23, false) /* SupplementalData of the client */                                                        \
    X(11, true)  /* Certificate of the client */                                                             \
    X(16, true)  /* ClientKeyExchange */

static bool message_body_fits(uint32_t type, const uint8_t *body, size_t len)
{
    switch (type) {
    case 1:
    case 2:
        return len >= HELLO_LEN_MIN && (body[0] << 8 | body[1]) == TLS12;
    case 14:
        return len == 0;
    default:
        return len > 0;
    }
}

static bool is_tls12_client(const uint8_t *data, size_t len)
{
    static const struct {
        uint8_t type;
        bool required;
    } order[] = {
#define ROW(type, required) {type, required},
        HANDSHAKE_ORDER(ROW)
#undef ROW
    };
    reader r = {.at = data, .left = len};

    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        const uint8_t *body = NULL;
        uint32_t body_len = 0;

        if (r.left == 0 || r.at[0] != order[i].type) {
            if (order[i].required) {
                return false;
            }
            continue;
        }
        take(&r, 1);
        body_len = take_number(&r, 3);
        body = take(&r, body_len);
        if (r.bad || !message_body_fits(order[i].type, body, body_len)) {
            return false;
        }
    }
    return r.left == 0;
}

/* ---- The question -------------------------------------------------------------------------------------- */

static bool fits_tls_server(const kh_sign_question *q)
{
    if (is_tls13(q->data, q->len, "TLS 1.3, server CertificateVerify")) {
        return scheme_for_tls13(q);
    }
    return is_ecdhe(q->data, q->len) && !is_der_constructed(q->data, q->len);
}

static bool fits_tls_dhe(const kh_sign_question *q)
{
    return is_dhe(q->data, q->len) && !is_der_constructed(q->data, q->len);
}

static bool fits_tls_client(const kh_sign_question *q)
{
    if (is_tls13(q->data, q->len, "TLS 1.3, client CertificateVerify")) {
        return scheme_for_tls13(q);
    }
    return is_tls12_client(q->data, q->len);
}

kh_result kh_usage_may_sign(const kh_sign_question *q)
{
    if (kh_scheme_key_type((int)q->scheme) == KH_KEY_NONE) {
        return KH_E_UNSUPPORTED;
    }
    if (!kh_scheme_fits((int)q->scheme, (int)q->key_type)) {
        return KH_E_SCHEME;
    }
    if (q->len > KH_MESSAGE_MAX) {
        return KH_E_TOO_LARGE;
    }
    if ((q->usage & KH_USAGE_SIGN) != 0) {
        /* A scheme that hashes itself has no digest to be given; its hash length is 0. */
        return !q->is_digest || (q->len > 0 && q->len == kh_scheme_hash_len((int)q->scheme)) ? KH_OK
                                                                                             : KH_E_INVALID;
    }
    if (q->is_digest) {
        return KH_E_USAGE;
    }
    if (((q->usage & KH_USAGE_TLS_SERVER) != 0 && fits_tls_server(q)) ||
        ((q->usage & KH_USAGE_TLS_DHE) != 0 && fits_tls_dhe(q)) ||
        ((q->usage & KH_USAGE_TLS_CLIENT) != 0 && fits_tls_client(q))) {
        return KH_OK;
    }
    return KH_E_USAGE;
}

uint32_t kh_usages_to_sign(uint32_t key_type, uint32_t scheme, bool is_digest, const uint8_t *data, size_t len)
{
    static const uint32_t usages[] = {KH_USAGE_TLS_SERVER, KH_USAGE_TLS_CLIENT, KH_USAGE_TLS_DHE, KH_USAGE_SIGN};
    kh_sign_question question = {
        .key_type = key_type, .scheme = scheme, .is_digest = is_digest, .data = data, .len = len};
    uint32_t found = 0;

    (void)!kh_dh_groups_init(); /* the front has had no use for them; without them tls-dhe is not found */
    for (size_t i = 0; i < sizeof(usages) / sizeof(usages[0]); i++) {
        question.usage = usages[i];
        if (kh_usage_may_sign(&question) == KH_OK) {
            found |= usages[i];
        }
    }
    return found;
}
