/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates and keys for TLS, from PEM files into an SSL_CTX. */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Files ---- */

static kh_result read_all(int fd, kh_tls_file *file)
{
    while (file->len <= KH_TLS_FILE_MAX) {
        ssize_t got = read(fd, file->data + file->len, KH_TLS_FILE_MAX + 1 - file->len);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return KH_E_IO;
        }
        if (got == 0) {
            return KH_OK;
        }
        file->len += (size_t)got;
    }
    return KH_E_TOO_LARGE;
}

kh_result kh_tls_file_read(const char *path, bool is_key, kh_tls_file *file)
{
    struct stat status = {0};
    kh_result result = KH_E_IO;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a pipe of that name cannot hold us up */

    *file = (kh_tls_file){0};
    if (fd < 0 || fstat(fd, &status) != 0) {
        goto done;
    }
    if (!S_ISREG(status.st_mode)) {
        errno = EINVAL;
        goto done;
    }
    if (is_key && (status.st_mode & 007) != 0) {
        result = KH_E_FORBIDDEN;
        goto done;
    }
    file->data = malloc(KH_TLS_FILE_MAX + 1);
    result = file->data != NULL ? read_all(fd, file) : KH_E_MEMORY;
done:
    if (fd >= 0) {
        int error = errno;

        close(fd);
        errno = error;
    }
    if (result != KH_OK) {
        kh_tls_file_free(file);
    }
    return result;
}

void kh_tls_file_free(kh_tls_file *file)
{
    if (file->data != NULL) {
        OPENSSL_cleanse(file->data, file->len);
    }
    free(file->data);
    *file = (kh_tls_file){0};
}

kh_bytes kh_tls_file_bytes(const kh_tls_file *file)
{
    return (kh_bytes){file->data, file->len};
}

const char *kh_tls_file_text(kh_result result)
{
    switch (result) {
    case KH_E_IO:
        return errno != 0 ? strerror(errno) : "cannot be read";
    case KH_E_FORBIDDEN:
        return "everybody may read it: chmod o= it";
    case KH_E_MALFORMED:
        return "there is nothing of that kind in it, or it is damaged (PEM is needed)";
    case KH_E_PASSPHRASE:
        return "the key is encrypted; an unencrypted one is needed, for root alone";
    case KH_E_MISMATCH:
        return "the key does not belong to the certificate";
    default:
        return kh_result_text(result);
    }
}

/* ---- PEM ---- */

static int no_passphrase(char *buf, int size, int writing, void *asked)
{
    (void)buf;
    (void)size;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

kh_result kh_tls_key_parse(kh_bytes pem, OSSL_LIB_CTX *libctx, EVP_PKEY **key)
{
    BIO *bio = BIO_new_mem_buf(pem.data, (int)pem.len);
    bool asked = false;

    *key = bio != NULL ? PEM_read_bio_PrivateKey_ex(bio, NULL, no_passphrase, &asked, libctx, NULL) : NULL;
    BIO_free(bio);
    ERR_clear_error();
    return *key != NULL ? KH_OK : asked ? KH_E_PASSPHRASE : bio == NULL ? KH_E_MEMORY : KH_E_MALFORMED;
}

/* Whether the PEM text came to its end, and not to a block that is damaged. */
static bool ended_well(void)
{
    unsigned long error = ERR_peek_last_error();

    ERR_clear_error();
    return ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
}

/* The next certificate of the PEM text, in the right library context. NULL: none, or it is damaged. */
static X509 *next_certificate(BIO *bio, OSSL_LIB_CTX *libctx)
{
    X509 *certificate = X509_new_ex(libctx, NULL);

    if (certificate != NULL && PEM_read_bio_X509(bio, &certificate, NULL, NULL) != NULL) {
        return certificate;
    }
    X509_free(certificate);
    return NULL;
}

/* Calls take(ctx, certificate, index) for each certificate; take keeps what it needs a reference of. */
static kh_result each_certificate(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem,
                                  kh_result (*take)(SSL_CTX *, X509 *, unsigned))
{
    BIO *bio = BIO_new_mem_buf(pem.data, (int)pem.len);
    kh_result result = bio != NULL ? KH_OK : KH_E_MEMORY;
    X509 *certificate = NULL;
    unsigned count = 0;

    ERR_clear_error();
    while (result == KH_OK && (certificate = next_certificate(bio, libctx)) != NULL) {
        result = take(ctx, certificate, count++);
        X509_free(certificate);
    }
    if (result == KH_OK && (!ended_well() || count == 0)) {
        result = KH_E_MALFORMED;
    }
    BIO_free(bio);
    ERR_clear_error();
    return result;
}

static kh_result take_own(SSL_CTX *ctx, X509 *certificate, unsigned index)
{
    int done = index == 0 ? SSL_CTX_use_certificate(ctx, certificate) : SSL_CTX_add1_chain_cert(ctx, certificate);

    return done == 1 ? KH_OK : KH_E_MALFORMED;
}

kh_result kh_tls_use_certificate(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem)
{
    return each_certificate(ctx, libctx, pem, take_own);
}

kh_result kh_tls_use_key(SSL_CTX *ctx, EVP_PKEY *key)
{
    bool fits = SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;

    ERR_clear_error();
    return fits ? KH_OK : KH_E_MISMATCH;
}

static kh_result take_ca(SSL_CTX *ctx, X509 *certificate, unsigned index)
{
    (void)index;
    return X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), certificate) == 1 ? KH_OK : KH_E_MEMORY;
}

kh_result kh_tls_use_ca(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem)
{
    return each_certificate(ctx, libctx, pem, take_ca);
}

static X509_CRL *next_crl(BIO *bio, OSSL_LIB_CTX *libctx)
{
    X509_CRL *crl = X509_CRL_new_ex(libctx, NULL);

    if (crl != NULL && PEM_read_bio_X509_CRL(bio, &crl, NULL, NULL) != NULL) {
        return crl;
    }
    X509_CRL_free(crl);
    return NULL;
}

kh_result kh_tls_use_crl(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, kh_bytes pem)
{
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    BIO *bio = BIO_new_mem_buf(pem.data, (int)pem.len);
    kh_result result = bio != NULL ? KH_OK : KH_E_MEMORY;
    X509_CRL *crl = NULL;
    unsigned count = 0;

    ERR_clear_error();
    while (result == KH_OK && (crl = next_crl(bio, libctx)) != NULL) {
        result = X509_STORE_add_crl(store, crl) == 1 ? KH_OK : KH_E_MEMORY;
        X509_CRL_free(crl);
        count++;
    }
    if (result == KH_OK && (!ended_well() || count == 0)) {
        result = KH_E_MALFORMED;
    }
    if (result == KH_OK && X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK) != 1) {
        result = KH_E_MEMORY;
    }
    BIO_free(bio);
    ERR_clear_error();
    return result;
}
