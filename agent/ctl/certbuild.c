/* SPDX-License-Identifier: Apache-2.0 */
/* Building certificates and requests around a signature that comes from elsewhere. See certbuild.h. */
#include "certbuild.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#define SANS_MAX 256 /* names in one certificate */

struct certbuild {
    X509 *cert; /* one of these two */
    X509_REQ *req;
    EVP_PKEY *pkey; /* the public key */
    kh_scheme scheme;
    uint8_t *tbs; /* from OpenSSL */
    size_t tbs_len;
};

/* X(key type, signature scheme, OpenSSL's algorithm, whether its parameters are NULL or absent) */
static const struct {
    kh_key_type type;
    kh_scheme scheme;
    int nid;
    int parameters;
} algorithms[] = {
    {KH_KEY_RSA, KH_RSA_PKCS1_SHA256, NID_sha256WithRSAEncryption, V_ASN1_NULL},
    {KH_KEY_P256, KH_ECDSA_SHA256, NID_ecdsa_with_SHA256, V_ASN1_UNDEF},
    {KH_KEY_P384, KH_ECDSA_SHA384, NID_ecdsa_with_SHA384, V_ASN1_UNDEF},
    {KH_KEY_P521, KH_ECDSA_SHA512, NID_ecdsa_with_SHA512, V_ASN1_UNDEF},
    {KH_KEY_ED25519, KH_ED25519, NID_ED25519, V_ASN1_UNDEF},
};

/* ---- The subject ---- */

/* Takes one "KEY=value" up to the next plain "/"; *at moves behind it. */
static kh_result add_attribute(X509_NAME *name, const char **at, ctl_error *error)
{
    char key[64];
    char value[512];
    size_t key_len = strcspn(*at, "=/");
    size_t len = 0;
    const char *c = *at + key_len + 1;

    if (key_len == 0 || key_len >= sizeof(key) || (*at)[key_len] != '=') {
        return ctl_fail_usage(
            error, "the subject has no \"NAME=value\" at \"%s\"; write it as \"/C=DE/O=Site/CN=www.example\"",
            *at);
    }
    memcpy(key, *at, key_len);
    key[key_len] = '\0';
    for (; *c != '\0' && *c != '/'; c++) {
        if (*c == '\\' && c[1] != '\0') {
            c++;
        }
        if (len + 1 >= sizeof(value)) {
            return ctl_fail_usage(error, "the subject's %s is too long; shorten it", key);
        }
        value[len++] = *c;
    }
    value[len] = '\0';
    if (len == 0) {
        return ctl_fail_usage(error, "the subject's %s is empty; give a value or leave it out", key);
    }
    if (OBJ_txt2nid(key) == NID_undef) {
        return ctl_fail_usage(
            error, "the subject's \"%s\" is not a known attribute; use C, ST, L, O, OU, CN, …", key);
    }
    if (!X509_NAME_add_entry_by_txt(name, key, MBSTRING_UTF8, (const unsigned char *)value, (int)len, -1,
                                    0)) {
        return ctl_fail_usage(
            error, "the subject's %s=\"%s\" is not allowed (wrong length or characters); correct it", key,
            value);
    }
    *at = *c == '/' ? c + 1 : c;
    return KH_OK;
}

static kh_result parse_subject(const char *text, X509_NAME *name, ctl_error *error)
{
    kh_result result = KH_OK;
    const char *at = text + 1;

    if (text[0] != '/' || text[1] == '\0') {
        return ctl_fail_usage(
            error, "the subject \"%s\" does not begin with \"/\"; write it as \"/CN=www.example\"", text);
    }
    while (*at != '\0' && result == KH_OK) {
        result = add_attribute(name, &at, error);
    }
    return result;
}

/* ---- Subject alternative names ---- */

/* A name that a TLS client could look for: letters, digits, "-" and ".", perhaps with "*." in front. */
static bool is_host_name(const char *text)
{
    const char *name = strncmp(text, "*.", 2) == 0 ? text + 2 : text;
    size_t len = strlen(name);

    return len > 0 && len <= 253 && name[0] != '.' && name[0] != '-' && strstr(name, "..") == NULL &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") == len;
}

static kh_result add_name(GENERAL_NAMES *names, const char *item, ctl_error *error)
{
    static const struct {
        const char *prefix;
        int type;
    } kinds[] = {{"DNS:", GEN_DNS}, {"IP:", GEN_IPADD}, {"email:", GEN_EMAIL}, {"URI:", GEN_URI}};
    GENERAL_NAME *name = NULL;
    ASN1_STRING *value = NULL;
    size_t kind = 0;

    while (kind < 4 && strncasecmp(item, kinds[kind].prefix, strlen(kinds[kind].prefix)) != 0) {
        kind++;
    }
    if (kind == 4) {
        return ctl_fail_usage(
            error,
            "\"%s\" is not a subject alternative name; write DNS:name, IP:address, email:address or URI:uri",
            item);
    }
    item += strlen(kinds[kind].prefix);
    if (kinds[kind].type == GEN_DNS && !is_host_name(item)) {
        return ctl_fail_usage(
            error, "\"%s\" is not a host name; correct DNS:%s (international names in their xn-- form)", item,
            item);
    }
    if (kinds[kind].type == GEN_IPADD) {
        value = a2i_IPADDRESS(item);
    } else if (item[0] != '\0' && (value = ASN1_IA5STRING_new()) != NULL &&
               !ASN1_STRING_set(value, item, -1)) {
        ASN1_STRING_free(value);
        value = NULL;
    }
    name = value != NULL ? GENERAL_NAME_new() : NULL;
    if (name == NULL) {
        ASN1_STRING_free(value);
        return ctl_fail_usage(error, "\"%s\" is not a value for %s; correct it", item, kinds[kind].prefix);
    }
    GENERAL_NAME_set0_value(name, kinds[kind].type, value);
    if (sk_GENERAL_NAME_push(names, name) <= 0) {
        GENERAL_NAME_free(name);
        return ctl_fail(error, KH_E_MEMORY, "cannot build the certificate: out of memory");
    }
    return KH_OK;
}

static kh_result parse_sans(const char *text, GENERAL_NAMES *names, ctl_error *error)
{
    char *copy = strdup(text);
    char *save = NULL;
    kh_result result = copy != NULL ? KH_OK : KH_E_MEMORY;

    for (char *item = copy != NULL ? strtok_r(copy, ",", &save) : NULL; item != NULL && result == KH_OK;
         item = strtok_r(NULL, ",", &save)) {
        item += strspn(item, " ");
        result =
            sk_GENERAL_NAME_num(names) < SANS_MAX
                ? add_name(names, item, error)
                : ctl_fail_usage(error, "more than %d subject alternative names; make several certificates",
                                 SANS_MAX);
    }
    free(copy);
    return result;
}

/* Without --san the common name counts if it is a host name: clients look at nothing else than SANs. */
static kh_result default_sans(X509_NAME *subject, GENERAL_NAMES *names, ctl_error *error)
{
    char cn[256] = "";
    char item[264];

    if (X509_NAME_get_text_by_NID(subject, NID_commonName, cn, sizeof(cn)) <= 0 || !is_host_name(cn)) {
        return KH_OK;
    }
    (void)snprintf(item, sizeof(item), "DNS:%s", cn);
    return add_name(names, item, error);
}

/* ---- Extensions ---- */

static bool push_extension(STACK_OF(X509_EXTENSION) * *extensions, int nid, bool critical, void *value)
{
    X509_EXTENSION *extension = X509V3_EXT_i2d(nid, critical, value);
    bool pushed = extension != NULL && X509v3_add_ext(extensions, extension, -1) != NULL;

    X509_EXTENSION_free(extension);
    return pushed;
}

/* What the key may be used for, in X.509's words: they follow from the key's usage, so that both say the
 * same. */
static bool push_usages(STACK_OF(X509_EXTENSION) * *extensions, const kh_key_info *info)
{
    EXTENDED_KEY_USAGE *extended = EXTENDED_KEY_USAGE_new();
    ASN1_BIT_STRING *bits = ASN1_BIT_STRING_new();
    bool pushed = extended != NULL && bits != NULL;

    pushed = pushed && ASN1_BIT_STRING_set_bit(bits, 0, 1); /* digitalSignature */
    if ((info->usage & KH_USAGE_TLS_RSA_KX) != 0) {
        pushed = pushed && ASN1_BIT_STRING_set_bit(bits, 2, 1); /* keyEncipherment */
    }
    if ((info->usage & (KH_USAGE_TLS_SERVER | KH_USAGE_TLS_RSA_KX | KH_USAGE_TLS_DHE)) != 0) {
        pushed = pushed && sk_ASN1_OBJECT_push(extended, OBJ_nid2obj(NID_server_auth)) > 0;
    }
    if ((info->usage & KH_USAGE_TLS_CLIENT) != 0) {
        pushed = pushed && sk_ASN1_OBJECT_push(extended, OBJ_nid2obj(NID_client_auth)) > 0;
    }
    pushed = pushed && push_extension(extensions, NID_key_usage, true, bits);
    if (pushed && sk_ASN1_OBJECT_num(extended) > 0) {
        pushed = push_extension(extensions, NID_ext_key_usage, false, extended);
    }
    ASN1_BIT_STRING_free(bits);
    EXTENDED_KEY_USAGE_free(extended);
    return pushed;
}

static bool push_basic_constraints(STACK_OF(X509_EXTENSION) * *extensions)
{
    BASIC_CONSTRAINTS *constraints = BASIC_CONSTRAINTS_new(); /* CA:FALSE */
    bool pushed = constraints != NULL && push_extension(extensions, NID_basic_constraints, true, constraints);

    BASIC_CONSTRAINTS_free(constraints);
    return pushed;
}

/* RFC 5280, 4.2.1.2, method 1: SHA-1 of the key's bits. It is a name, not a protection. */
static bool push_key_identifier(STACK_OF(X509_EXTENSION) * *extensions, const X509 *cert)
{
    ASN1_OCTET_STRING *identifier = ASN1_OCTET_STRING_new();
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    bool pushed = identifier != NULL && X509_pubkey_digest(cert, EVP_sha1(), digest, &len) &&
                  ASN1_OCTET_STRING_set(identifier, digest, (int)len) &&
                  push_extension(extensions, NID_subject_key_identifier, false, identifier);

    ASN1_OCTET_STRING_free(identifier);
    return pushed;
}

static kh_result make_extensions(const kh_key_info *info, const certbuild_wish *wish, X509_NAME *subject,
                                 const X509 *cert, STACK_OF(X509_EXTENSION) * *extensions, ctl_error *error)
{
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    kh_result result = KH_E_MEMORY;
    bool pushed = false;

    if (names != NULL) {
        result =
            wish->san != NULL ? parse_sans(wish->san, names, error) : default_sans(subject, names, error);
    }
    if (result == KH_OK) {
        pushed = push_basic_constraints(extensions) && push_usages(extensions, info) &&
                 (cert == NULL || push_key_identifier(extensions, cert)) &&
                 (sk_GENERAL_NAME_num(names) == 0 ||
                  push_extension(extensions, NID_subject_alt_name, false, names));
        result = pushed ? KH_OK : KH_E_CRYPTO;
    }
    GENERAL_NAMES_free(names);
    return result;
}

/* ---- Building ---- */

/* 159 random bits below a set top bit: positive, of constant length, never zero. */
static bool set_serial(X509 *cert)
{
    uint8_t bytes[20];
    BIGNUM *number = NULL;
    bool set = false;

    if (RAND_bytes(bytes, sizeof(bytes)) == 1) {
        bytes[0] = (uint8_t)((bytes[0] & 0x3f) | 0x40);
        number = BN_bin2bn(bytes, sizeof(bytes), NULL);
        set = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) != NULL;
    }
    BN_free(number);
    return set;
}

static kh_result build_certificate(certbuild *build, const kh_key_info *info, const certbuild_wish *wish,
                                   X509_NAME *subject, const X509_ALGOR *algorithm, ctl_error *error)
{
    STACK_OF(X509_EXTENSION) *extensions = NULL;
    const X509_ALGOR *outer = NULL;
    const ASN1_BIT_STRING *signature = NULL;
    X509 *cert = X509_new();
    kh_result result = KH_E_CRYPTO;
    int tbs_len = 0;

    build->cert = cert;
    if (cert == NULL || !X509_set_version(cert, X509_VERSION_3) || !set_serial(cert) ||
        !X509_set_subject_name(cert, subject) || !X509_set_issuer_name(cert, subject) ||
        !X509_set_pubkey(cert, build->pkey) ||
        ASN1_TIME_adj(X509_getm_notBefore(cert), wish->not_before, 0, 0) == NULL ||
        ASN1_TIME_adj(X509_getm_notAfter(cert), wish->not_before, (int)wish->days, -1) == NULL) {
        goto done;
    }
    result = make_extensions(info, wish, subject, cert, &extensions, error);
    if (result != KH_OK) {
        goto done;
    }
    for (int i = 0; i < sk_X509_EXTENSION_num(extensions); i++) {
        if (!X509_add_ext(cert, sk_X509_EXTENSION_value(extensions, i), -1)) {
            result = KH_E_MEMORY;
            goto done;
        }
    }
    /* OpenSSL has no setters for the two algorithm fields outside X509_sign; the objects themselves are the
     * certificate's. */
    X509_get0_signature(&signature, &outer, cert);
    if (!X509_ALGOR_copy((X509_ALGOR *)X509_get0_tbs_sigalg(cert), algorithm) ||
        !X509_ALGOR_copy((X509_ALGOR *)outer, algorithm)) {
        result = KH_E_MEMORY;
        goto done;
    }
    tbs_len = i2d_re_X509_tbs(cert, &build->tbs);
    build->tbs_len = tbs_len > 0 ? (size_t)tbs_len : 0;
    result = tbs_len > 0 ? KH_OK : KH_E_CRYPTO;
done:
    sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
    return result;
}

static kh_result build_request(certbuild *build, const kh_key_info *info, const certbuild_wish *wish,
                               X509_NAME *subject, X509_ALGOR *algorithm, ctl_error *error)
{
    STACK_OF(X509_EXTENSION) *extensions = NULL;
    X509_REQ *req = X509_REQ_new();
    kh_result result = KH_E_CRYPTO;
    int tbs_len = 0;

    build->req = req;
    if (req == NULL || !X509_REQ_set_version(req, X509_REQ_VERSION_1) ||
        !X509_REQ_set_subject_name(req, subject) || !X509_REQ_set_pubkey(req, build->pkey)) {
        goto done;
    }
    result = make_extensions(info, wish, subject, NULL, &extensions, error);
    if (result != KH_OK) {
        goto done;
    }
    result = KH_E_CRYPTO;
    if (!X509_REQ_add_extensions(req, extensions) || !X509_REQ_set1_signature_algo(req, algorithm)) {
        goto done;
    }
    tbs_len = i2d_re_X509_REQ_tbs(req, &build->tbs);
    build->tbs_len = tbs_len > 0 ? (size_t)tbs_len : 0;
    result = tbs_len > 0 ? KH_OK : KH_E_CRYPTO;
done:
    sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
    return result;
}

kh_result certbuild_new(const kh_key_info *info, const certbuild_wish *wish, certbuild **out,
                        ctl_error *error)
{
    certbuild *build = calloc(1, sizeof(*build));
    X509_NAME *subject = X509_NAME_new();
    X509_ALGOR *algorithm = X509_ALGOR_new();
    const unsigned char *at = info->spki;
    kh_result result = KH_E_MEMORY;
    size_t row = 0;

    *out = NULL;
    if (build == NULL || subject == NULL || algorithm == NULL) {
        goto done;
    }
    while (row < sizeof(algorithms) / sizeof(algorithms[0]) &&
           algorithms[row].type != (kh_key_type)info->type) {
        row++;
    }
    result = KH_E_CRYPTO;
    build->pkey = info->spki_len <= KH_SPKI_MAX ? d2i_PUBKEY(NULL, &at, (long)info->spki_len) : NULL;
    if (build->pkey == NULL || row == sizeof(algorithms) / sizeof(algorithms[0])) {
        goto done;
    }
    build->scheme = algorithms[row].scheme;
    if (!X509_ALGOR_set0(algorithm, OBJ_nid2obj(algorithms[row].nid), algorithms[row].parameters, NULL)) {
        goto done;
    }
    result = parse_subject(wish->subject, subject, error);
    if (result == KH_OK) {
        result = wish->request ? build_request(build, info, wish, subject, algorithm, error)
                               : build_certificate(build, info, wish, subject, algorithm, error);
    }
    if (result == KH_OK && build->tbs_len > KH_MESSAGE_MAX) {
        result =
            ctl_fail(error, KH_E_TOO_LARGE, "the certificate is too large to be signed; use fewer names");
    }
    if (result == KH_OK) {
        *out = build;
        build = NULL; /* the caller's now */
    }
done:
    if (result != KH_OK && error->text[0] == '\0') {
        ctl_fail(error, result, "cannot build the certificate: %s; report this", kh_result_text(result));
    }
    ERR_clear_error();
    X509_ALGOR_free(algorithm);
    X509_NAME_free(subject);
    certbuild_free(build);
    return result;
}

void certbuild_free(certbuild *build)
{
    if (build == NULL) {
        return;
    }
    X509_free(build->cert);
    X509_REQ_free(build->req);
    EVP_PKEY_free(build->pkey);
    OPENSSL_free(build->tbs);
    free(build);
}

const uint8_t *certbuild_tbs(const certbuild *build, size_t *len)
{
    *len = build->tbs_len;
    return build->tbs;
}

kh_scheme certbuild_scheme(const certbuild *build)
{
    return build->scheme;
}

static bool set_signature(ASN1_BIT_STRING *bits, const uint8_t *signature, size_t len)
{
    if (bits == NULL || !ASN1_BIT_STRING_set(bits, (unsigned char *)(uintptr_t)signature, (int)len)) {
        return false;
    }
    bits->flags &= ~(ASN1_STRING_FLAG_BITS_LEFT | 0x07);
    bits->flags |= ASN1_STRING_FLAG_BITS_LEFT; /* all bits of the last byte count */
    return true;
}

static bool finish_certificate(certbuild *build, const uint8_t *signature, size_t len, BIO *bio)
{
    const ASN1_BIT_STRING *bits = NULL;

    X509_get0_signature(&bits, NULL, build->cert);
    return set_signature((ASN1_BIT_STRING *)bits, signature, len) &&
           X509_verify(build->cert, build->pkey) == 1 && PEM_write_bio_X509(bio, build->cert) == 1;
}

static bool finish_request(certbuild *build, const uint8_t *signature, size_t len, BIO *bio)
{
    ASN1_BIT_STRING *bits = ASN1_BIT_STRING_new();

    if (!set_signature(bits, signature, len)) {
        ASN1_BIT_STRING_free(bits);
        return false;
    }
    X509_REQ_set0_signature(build->req, bits);
    return X509_REQ_verify(build->req, build->pkey) == 1 && PEM_write_bio_X509_REQ(bio, build->req) == 1;
}

kh_result certbuild_finish(certbuild *build, const uint8_t *signature, size_t len, char **pem,
                           ctl_error *error)
{
    BIO *bio = BIO_new(BIO_s_mem());
    kh_result result = KH_OK;
    char *data = NULL;
    long pem_len = 0;

    *pem = NULL;
    if (bio == NULL || len > KH_SIGNATURE_MAX ||
        !(build->cert != NULL ? finish_certificate(build, signature, len, bio)
                              : finish_request(build, signature, len, bio))) {
        result =
            ctl_fail(error, KH_E_CRYPTO,
                     "the agent's signature does not verify with the key; nothing was written; report this");
        goto done;
    }
    pem_len = BIO_get_mem_data(bio, &data);
    *pem = strndup(data, (size_t)pem_len);
    if (*pem == NULL) {
        result = ctl_fail(error, KH_E_MEMORY, "cannot write the certificate: out of memory");
    }
done:
    ERR_clear_error();
    BIO_free(bio);
    return result;
}
