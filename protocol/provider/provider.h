/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The OpenSSL 3 provider's core: what it and its host say to each other. The core turns OpenSSL's calls on a key
 * reference into requests of the Keyhold protocol; the host (keyhold.so, the nginx module) carries them to an agent
 * and waits in its own way. The core knows no socket, no clock and no nginx.
 */
#ifndef KH_PROVIDER_H
#define KH_PROVIDER_H

#include <keyhold/protocol.h>
#include <openssl/core.h>

/* What the host is told of a key reference that was loaded. Views hold during the call. */
typedef struct kh_provider_key_info {
    const char *name;  /* "" when the reference names the key by its public key alone */
    const uint8_t *id; /* KH_KEY_ID_LEN bytes */
    kh_key_type type;
    unsigned bits;
} kh_provider_key_info;

/* A key of the provider, for the two questions below. Holds during the call of perform. */
typedef struct kh_prov_key kh_prov_key;

typedef struct kh_provider_host {
    /*
     * Carries out one request and waits for its end, from whatever thread uses the key. `req` has everything but
     * deadline_ms, which is the host's to choose. On KH_OK the reply's data, *len bytes, are in `out`, which has room
     * for `cap` (KH_E_TOO_LARGE when they do not fit). Every other result is put into OpenSSL's error queue by the
     * core. `key`, `req` and `out` belong to the caller and live until the return.
     */
    kh_result (*perform)(void *ctx, const kh_prov_key *key, kh_request *req, uint8_t *out, size_t cap, size_t *len);
    /* Called after a reference was decoded; may be NULL. Must not call OpenSSL on that key. */
    void (*key_loaded)(void *ctx, const kh_provider_key_info *info);
    void *ctx;
} kh_provider_host;

/*
 * Sets the host of this process's (of this module's) provider core; copied. Call before the provider is loaded; not to
 * be changed while another thread uses a key.
 */
void kh_provider_set_host(const kh_provider_host *host);

/*
 * Whether a reply can be one to this request: a signature of the key's length and form, a premaster secret of 48 bytes.
 * Costs nothing. And whether a signature verifies: some 20 to 40 microseconds for RSA, for curves as much as three of
 * their signatures. Leaves OpenSSL's error queue as it may be.
 */
bool kh_provider_reply_shape(const kh_prov_key *key, const kh_request *req, const uint8_t *data, size_t len);
bool kh_provider_signature_good(const kh_prov_key *key, const kh_request *req, const uint8_t *sig, size_t len);
kh_key_type kh_provider_key_type(const kh_prov_key *key);

/* An OSSL_provider_init_fn, for OSSL_PROVIDER_add_builtin or to be called by a module's OSSL_provider_init. */
int kh_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                     void **provctx);

#endif
