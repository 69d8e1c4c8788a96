/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of p11_*.c share. The only header that knows PKCS#11's own types. */
#ifndef KEYHOLD_KEYSTORE_P11_INTERNAL_H
#define KEYHOLD_KEYSTORE_P11_INTERNAL_H

#include "p11.h"

#include <openssl/types.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>

#define KH_P11_PIN_MAX 256 /* bytes */
#define KH_P11_MECHANISMS_MAX 512
#define KH_P11_ERROR_MAX 128   /* bytes of an error's text */
#define KH_P11_TEMPLATE_MAX 24 /* attributes of a template */

/* Newer than the header's 2.40. */
#define KH_CKM_AES_KEY_WRAP_KWP 0x210bUL

typedef struct kh_p11_mechanism {
    CK_MECHANISM_TYPE type;
    CK_MECHANISM_INFO info;
} kh_p11_mechanism;

struct kh_p11 {
    void *library;
    CK_FUNCTION_LIST *f;
    bool initialized; /* by us: C_Finalize is ours to call */
    CK_SLOT_ID slot;
    char label[33]; /* of the token, as it says itself, without padding */
    char serial[17];
    bool login_required;
    kh_p11_mechanism *mechanisms; /* sorted by type */
    size_t mechanism_count;
    kh_log_fn log;
    void *log_ctx;

    pthread_mutex_t login_lock; /* what follows */
    bool login_holds;           /* it once succeeded: sessions that are renewed see to it again */
    bool logged_in;             /* login_session is open, and was logged in */
    kh_result pin_refused; /* KH_E_PASSPHRASE or KH_E_LOCKED: never tried again, or the token locks */
    CK_SESSION_HANDLE login_session;
    size_t pin_len;
    bool has_pin;
    bool new_pin;
    uint8_t pin[KH_P11_PIN_MAX];
};

struct kh_p11_session {
    kh_p11 *p11;
    CK_SESSION_HANDLE handle;
    bool open;
    bool read_write;
    bool object_lost; /* the last use of a key failed by its handle: once more, and the token itself is stale
                       */
    kh_p11_heal heal;
    char error[KH_P11_ERROR_MAX];
};

/* ---- p11_error.c ---- */

typedef struct kh_p11_meaning {
    CK_RV rv;
    const char *name; /* "CKR_DEVICE_ERROR" */
    kh_result result;
    kh_p11_heal heal;
} kh_p11_meaning;

/* Never NULL: what is not in the table means that the token failed. */
const kh_p11_meaning *kh_p11_meaning_of(CK_RV rv);
/* CKR_OK: clears the session's error and returns KH_OK; else notes what and where, and returns what it means.
 */
KH_MUST_USE kh_result kh_p11_check(kh_p11_session *session, const char *function, CK_RV rv);
/* Notes an error of ours about what the token answered. */
KH_MUST_USE kh_result kh_p11_refuse(kh_p11_session *session, kh_result result, kh_p11_heal heal,
                                    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* An error that was the last one, too, becomes a line for debugging. */
void kh_p11_log(const kh_p11 *p11, kh_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The token is open: what is said from now on is new. */
void kh_p11_log_anew(void);

/* ---- p11_module.c ---- */

#define KH_P11_FIELD_MAX 32 /* bytes of the longest padded field of CK_TOKEN_INFO */

/* A field of fixed size without its padding. text: len + 1 bytes. */
void kh_p11_unpad(const unsigned char *field, size_t len, char *text);

/* Whether the token has the mechanism for what the flags (CKF_SIGN, …) say. */
bool kh_p11_has(const kh_p11 *p11, CK_MECHANISM_TYPE type, CK_FLAGS flags);
/* The same for keys of that size; what a token says of sizes is believed only where it can be bits. */
bool kh_p11_has_for(const kh_p11 *p11, CK_MECHANISM_TYPE type, CK_FLAGS flags, uint32_t bits);

/* ---- p11_object.c ---- */

/* A template that is put together; values are borrowed. */
typedef struct kh_p11_template {
    CK_ATTRIBUTE attributes[KH_P11_TEMPLATE_MAX];
    CK_ULONG count;
} kh_p11_template;

void kh_p11_put(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, const void *value, size_t len);
void kh_p11_put_bool(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, bool value);
/* Takes an attribute out again. */
void kh_p11_drop(kh_p11_template *template, CK_ATTRIBUTE_TYPE type);
void kh_p11_put_ulong(kh_p11_template *template, CK_ATTRIBUTE_TYPE type, const CK_ULONG *value);
/* CKA_ID and CKA_LABEL, as far as the locator has them. */
void kh_p11_put_names(kh_p11_template *template, const kh_p11_locator *locator);

/*
 * Finds up to max objects; *count is how many. That there are none is believed only of the right token, and of one that has not
 * logged us out: it would show no private ones.
 */
KH_MUST_USE kh_result kh_p11_find_all(kh_p11_session *session, const kh_p11_template *template,
                                      CK_OBJECT_HANDLE *objects, size_t max, size_t *count);
/* One attribute; a length beyond cap is refused whatever the token says. KH_E_NOT_FOUND: the object has none.
 */
KH_MUST_USE kh_result kh_p11_attribute(kh_p11_session *session, CK_OBJECT_HANDLE object,
                                       CK_ATTRIBUTE_TYPE type, void *value, size_t cap, size_t *len);
/* SubjectPublicKeyInfo from the attributes of one object, public or private. */
KH_MUST_USE kh_result kh_p11_spki_of(kh_p11_session *session, CK_OBJECT_HANDLE object, uint8_t *spki,
                                     size_t *spki_len);

/* The named curves, as CKA_EC_PARAMS have them: the DER of an OID, or for Ed25519 of a name. */
typedef struct kh_p11_curve {
    uint32_t type, bits;
    const char *group; /* OpenSSL's name; NULL: not Weierstrass */
    size_t field_len;
    uint8_t params[16];
    size_t params_len;
} kh_p11_curve;

/* The nth curve of that type (the first is the usual spelling); NULL: no more. */
const kh_p11_curve *kh_p11_curve_of(uint32_t type, size_t nth);

/* ---- p11_pool.c ---- */

#define KH_P11_POOL_LABEL_MAX (16 + KH_PLACE_MAX + 1)

/* "keyhold-pool NAME". KH_E_INVALID: no name that can be one. */
KH_MUST_USE kh_result kh_p11_pool_label(kh_p11_session *session, const char *prefix, const char *pool,
                                        char label[KH_P11_POOL_LABEL_MAX]);
/* The one object of that class and label. KH_E_NOT_FOUND, KH_E_INVALID: several. */
KH_MUST_USE kh_result kh_p11_find_labelled(kh_p11_session *session, CK_ULONG class, const char *label,
                                           CK_OBJECT_HANDLE *object);
/* RFC 5649, by whichever name the token has it. False: it has none. */
bool kh_p11_wrap_mechanism(const kh_p11 *p11, CK_MECHANISM *mechanism);
/* C_WrapKey of an extractable key into blob (cap bytes). */
KH_MUST_USE kh_result kh_p11_wrap(kh_p11_session *session, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key,
                                  uint8_t *blob, size_t cap, size_t *blob_len);
/* C_UnwrapKey; what libraries say of a damaged blob becomes KH_E_DAMAGED. */
KH_MUST_USE kh_result kh_p11_unwrap(kh_p11_session *session, CK_MECHANISM *mechanism,
                                    CK_OBJECT_HANDLE wrapping, const uint8_t *blob, size_t blob_len,
                                    const kh_p11_template *template, CK_OBJECT_HANDLE *object);
/* Objects of a session that can be wrapped: a pair made in the token; handles: public, private. */
KH_MUST_USE kh_result kh_p11_passing_pair(kh_p11_session *session, uint32_t type, uint32_t bits,
                                          CK_OBJECT_HANDLE handles[2]);

/* ---- p11_make.c ---- */

/* Adds the attributes that are the private key itself, calls make with the template, and wipes them. */
typedef kh_result (*kh_p11_make_fn)(kh_p11_session *session, kh_p11_template *template, void *ctx);
KH_MUST_USE kh_result kh_p11_with_secret(kh_p11_session *session, const EVP_PKEY *pkey, uint32_t type,
                                         kh_p11_template *template, kh_p11_make_fn make, void *ctx);
/* Parses PKCS#8 of a key that Keyhold knows; spki may be NULL. The caller frees. */
KH_MUST_USE kh_result kh_p11_read_pkcs8(kh_p11_session *session, const uint8_t *pkcs8, size_t pkcs8_len,
                                        EVP_PKEY **pkey, kh_key_type *type, uint8_t *spki, size_t *spki_len);
/* CKA_CLASS and CKA_KEY_TYPE of a private key. */
void kh_p11_put_type(kh_p11_template *template, uint32_t type);
KH_MUST_USE kh_result kh_p11_create(kh_p11_session *session, const kh_p11_template *template,
                                    CK_OBJECT_HANDLE *object);

/* What every private key that lives in a token gets: sensitive, not extractable, and what it may do by usage.
 */
void kh_p11_put_private(kh_p11_template *template, uint32_t usage, uint32_t type);
/* Makes the public object that belongs to a private key. */
KH_MUST_USE kh_result kh_p11_public_create(kh_p11_session *session, const kh_p11_locator *locator,
                                           const uint8_t *spki, size_t spki_len);
/* KH_E_FORBIDDEN: the token made the key otherwise than it was told (not sensitive, or extractable). */
KH_MUST_USE kh_result kh_p11_is_kept(kh_p11_session *session, CK_OBJECT_HANDLE private_key);
/* C_GenerateKeyPair with these templates; tries each spelling of the curve. handles: public, private. */
KH_MUST_USE kh_result kh_p11_pair_make(kh_p11_session *session, uint32_t type, uint32_t bits,
                                       const kh_p11_template *public_, const kh_p11_template *private_,
                                       CK_OBJECT_HANDLE handles[2]);

#endif
