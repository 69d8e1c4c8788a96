/* SPDX-License-Identifier: Apache-2.0 */
#include "light_hello.h"

#include <stdbool.h>
#include <string.h>

enum { /* RFC 8446, section 4.2 */
    EXT_SERVER_NAME = 0,
    EXT_SUPPORTED_GROUPS = 10,
    EXT_SIGNATURE_ALGORITHMS = 13,
    EXT_SUPPORTED_VERSIONS = 43,
    EXT_KEY_SHARE = 51
};

#define CLIENT_HELLO 1
#define TLS12 0x0303 /* legacy_version */
#define TLS13 0x0304
#define TLS_AES_128_GCM_SHA256 0x1301
#define X25519 0x001d

static const struct {
    uint16_t code;
    const char *name;
} schemes[] = {
    {0x0403, "ecdsa_secp256r1_sha256"}, {0x0503, "ecdsa_secp384r1_sha384"}, {0x0603, "ecdsa_secp521r1_sha512"},
    {0x0807, "ed25519"},                {0x0804, "rsa_pss_rsae_sha256"},    {0x0805, "rsa_pss_rsae_sha384"},
    {0x0806, "rsa_pss_rsae_sha512"},
};
#define SCHEMES (sizeof(schemes) / sizeof(schemes[0]))

const char *kh_light_scheme_name(unsigned scheme)
{
    size_t i;

    for (i = 0; i < SCHEMES; i++) {
        if (schemes[i].code == scheme) {
            return schemes[i].name;
        }
    }
    return NULL;
}

/* ---- ClientHello (section 4.1.2) ----------------------------------------------------------------------------------- */

typedef struct writer {
    uint8_t *data; /* KH_LIGHT_HELLO_MAX bytes: more than all of this is */
    size_t len;
} writer;

static void put16(writer *w, size_t value)
{
    w->data[w->len++] = (uint8_t)(value >> 8);
    w->data[w->len++] = (uint8_t)value;
}

static void put_bytes(writer *w, const void *bytes, size_t len)
{
    memcpy(w->data + w->len, bytes, len);
    w->len += len;
}

/* RFC 6066, section 3. */
static void put_server_name(writer *w, const char *sni)
{
    size_t len = strlen(sni);

    put16(w, EXT_SERVER_NAME);
    put16(w, len + 5);
    put16(w, len + 3);
    w->data[w->len++] = 0; /* host_name */
    put16(w, len);
    put_bytes(w, sni, len);
}

static void put_extensions(writer *w, const char *sni, const uint8_t *share)
{
    size_t i;

    if (sni != NULL) {
        put_server_name(w, sni);
    }
    put16(w, EXT_SUPPORTED_GROUPS);
    put16(w, 4);
    put16(w, 2);
    put16(w, X25519);
    put16(w, EXT_SIGNATURE_ALGORITHMS);
    put16(w, 2 + 2 * SCHEMES);
    put16(w, 2 * SCHEMES);
    for (i = 0; i < SCHEMES; i++) {
        put16(w, schemes[i].code);
    }
    put16(w, EXT_SUPPORTED_VERSIONS);
    put16(w, 3);
    w->data[w->len++] = 2;
    put16(w, TLS13);
    put16(w, EXT_KEY_SHARE);
    put16(w, 6 + KH_LIGHT_SHARE_LEN);
    put16(w, 4 + KH_LIGHT_SHARE_LEN);
    put16(w, X25519);
    put16(w, KH_LIGHT_SHARE_LEN);
    put_bytes(w, share, KH_LIGHT_SHARE_LEN);
}

size_t kh_light_client_hello(const char *sni, const uint8_t share[KH_LIGHT_SHARE_LEN], uint8_t out[KH_LIGHT_HELLO_MAX])
{
    writer w = {.data = out};
    size_t extensions_at;

    if (sni != NULL && (sni[0] == '\0' || strlen(sni) > 255)) {
        return 0;
    }
    memset(out, 0, KH_LIGHT_HELLO_MAX);
    w.len = 4; /* the message's header */
    put16(&w, TLS12);
    w.len += KH_LIGHT_RANDOM_LEN;
    out[w.len++] = KH_LIGHT_SESSION_ID_LEN;
    w.len += KH_LIGHT_SESSION_ID_LEN;
    put16(&w, 2);
    put16(&w, TLS_AES_128_GCM_SHA256);
    put16(&w, 0x0100); /* no compression */
    extensions_at = w.len;
    w.len += 2;
    put_extensions(&w, sni, share);
    out[0] = CLIENT_HELLO;
    out[2] = (uint8_t)((w.len - 4) >> 8);
    out[3] = (uint8_t)(w.len - 4);
    out[extensions_at] = (uint8_t)((w.len - extensions_at - 2) >> 8);
    out[extensions_at + 1] = (uint8_t)(w.len - extensions_at - 2);
    return w.len;
}

/* ---- ServerHello (section 4.1.3) ----------------------------------------------------------------------------------- */

/* What is left to read. All of it is the server's: nothing is read before it is known to be there. */
typedef struct reader {
    const uint8_t *data;
    size_t left;
} reader;

/* The next `len` bytes, or NULL. */
static const uint8_t *get(reader *r, size_t len)
{
    const uint8_t *at = r->data;

    if (r->left < len) {
        return NULL;
    }
    r->data += len;
    r->left -= len;
    return at;
}

static bool get16(reader *r, unsigned *value)
{
    const uint8_t *at = get(r, 2);

    *value = at != NULL ? (unsigned)at[0] << 8 | at[1] : 0;
    return at != NULL;
}

typedef struct answer {
    bool version, share;
    uint8_t *out;
} answer;

/* One extension; what is wrong with it, or NULL. */
static const char *take_extension(unsigned type, reader body, answer *a)
{
    unsigned value = 0;
    unsigned len = 0;

    if (type == EXT_SUPPORTED_VERSIONS && !a->version) {
        a->version = true;
        return get16(&body, &value) && value == TLS13 && body.left == 0 ? NULL : "ServerHello: not TLS 1.3";
    }
    if (type == EXT_KEY_SHARE && !a->share) {
        a->share = true;
        if (!get16(&body, &value) || value != X25519 || !get16(&body, &len) || len != KH_LIGHT_SHARE_LEN ||
            body.left != KH_LIGHT_SHARE_LEN) {
            return "ServerHello: not a key share of X25519";
        }
        memcpy(a->out, body.data, KH_LIGHT_SHARE_LEN);
        return NULL;
    }
    return "ServerHello: an extension that was not asked for, or twice";
}

static const char *take_extensions(reader *r, answer *a)
{
    const char *wrong = NULL;
    unsigned type;
    unsigned len;

    while (wrong == NULL && r->left > 0) {
        reader body = {0};

        if (!get16(r, &type) || !get16(r, &len) || (body.data = get(r, len)) == NULL) {
            return "ServerHello: malformed extensions";
        }
        body.left = len;
        wrong = take_extension(type, body, a);
    }
    if (wrong == NULL && !a->version) {
        return "the server has no TLS 1.3";
    }
    return wrong != NULL || a->share ? wrong : "ServerHello: no key share";
}

const char *kh_light_server_hello(const uint8_t *body, size_t len, const uint8_t session_id[KH_LIGHT_SESSION_ID_LEN],
                                  uint8_t share[KH_LIGHT_SHARE_LEN])
{
    static const uint8_t retry[KH_LIGHT_RANDOM_LEN] = {
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
        0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c};
    reader r = {body, len};
    answer a = {.out = share};
    unsigned version;
    unsigned suite;
    unsigned extensions;
    const uint8_t *random;
    const uint8_t *echo;
    const uint8_t *compression;

    if (!get16(&r, &version) || version != TLS12 || (random = get(&r, KH_LIGHT_RANDOM_LEN)) == NULL) {
        return "malformed ServerHello";
    }
    if (memcmp(random, retry, sizeof(retry)) == 0) {
        return "HelloRetryRequest: the server does not take X25519";
    }
    echo = get(&r, 1 + KH_LIGHT_SESSION_ID_LEN);
    if (echo == NULL || echo[0] != KH_LIGHT_SESSION_ID_LEN || memcmp(echo + 1, session_id, KH_LIGHT_SESSION_ID_LEN) != 0) {
        return "ServerHello: another session id (no TLS 1.3?)";
    }
    if (!get16(&r, &suite) || suite != TLS_AES_128_GCM_SHA256) {
        return "ServerHello: not TLS_AES_128_GCM_SHA256";
    }
    compression = get(&r, 1);
    if (compression == NULL || compression[0] != 0 || !get16(&r, &extensions) || extensions != r.left) {
        return "malformed ServerHello";
    }
    return take_extensions(&r, &a);
}
