/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens: who the caller is, and the proof of it. */
#include <keyhold/client.h>

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KH_TOKEN_WORD "keyhold-token-1 "
#define KH_TOKEN_FILE_MAX 512

/*
 * The value of a hex digit, or -1, without a branch or an index that depends on it: each range contributes
 * its value where a mask, made of the borrow bits of two subtractions, says that the digit is in it.
 */
static int kh_hex_digit(uint8_t c)
{
    int digit = ((('0' - 1 - c) & (c - ('9' + 1))) >> 8) & (c - '0' + 1);
    int lower = ((('a' - 1 - c) & (c - ('f' + 1))) >> 8) & (c - 'a' + 11);
    int upper = ((('A' - 1 - c) & (c - ('F' + 1))) >> 8) & (c - 'A' + 11);

    return (digit | lower | upper) - 1;
}

static kh_result kh_secret_parse(const char *hex, uint8_t *secret)
{
    int bad = 0;

    for (size_t i = 0; i < KH_TOKEN_SECRET_LEN; i++) {
        int high = kh_hex_digit((uint8_t)hex[2 * i]);
        int low = kh_hex_digit((uint8_t)hex[2 * i + 1]);

        bad |= high | low; /* negative as soon as one of them was */
        secret[i] = (uint8_t)((unsigned)high << 4 | (unsigned)low);
    }
    return bad < 0 ? KH_E_MALFORMED : KH_OK;
}

kh_result kh_credential_parse(const char *text, size_t len, kh_credential *cred)
{
    const size_t word_len = sizeof(KH_TOKEN_WORD) - 1;
    const size_t hex_len = 2 * (size_t)KH_TOKEN_SECRET_LEN;
    const char *space = NULL;
    size_t name_len = 0;

    *cred = (kh_credential){0};
    if (len > 0 && text[len - 1] == '\n') {
        len--;
    }
    if (len < word_len || memcmp(text, KH_TOKEN_WORD, word_len) != 0) {
        return KH_E_MALFORMED;
    }
    text += word_len;
    len -= word_len;
    space = memchr(text, ' ', len);
    name_len = space != NULL ? (size_t)(space - text) : 0;
    if (space == NULL || len - name_len - 1 != hex_len || !kh_name_valid(text, name_len)) {
        return KH_E_MALFORMED;
    }
    if (kh_secret_parse(space + 1, cred->secret) != KH_OK) {
        kh_credential_wipe(cred);
        return KH_E_MALFORMED;
    }
    memcpy(cred->identity, text, name_len);
    return KH_OK;
}

/* Reads the whole of a small file. */
static kh_result kh_read_small(int fd, char *buf, size_t cap, size_t *len)
{
    *len = 0;
    while (*len < cap) {
        ssize_t got = read(fd, buf + *len, cap - *len);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return KH_E_IO;
        }
        if (got == 0) {
            return KH_OK;
        }
        *len += (size_t)got;
    }
    return KH_E_MALFORMED; /* longer than any token */
}

kh_result kh_credential_load(const char *path, kh_credential *cred)
{
    char text[KH_TOKEN_FILE_MAX];
    struct stat status = {0};
    size_t len = 0;
    kh_result result = KH_E_IO;
    /* Not blocking, so that a pipe of that name cannot hold up the caller's start. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    *cred = (kh_credential){0};
    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        goto done;
    }
    if ((status.st_mode & 077) != 0) {
        result = KH_E_FORBIDDEN;
        goto done;
    }
    result = kh_read_small(fd, text, sizeof(text), &len);
    if (result != KH_OK) {
        goto done;
    }
    result = kh_credential_parse(text, len, cred);
done:
    OPENSSL_cleanse(text, sizeof(text));
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

void kh_credential_wipe(kh_credential *cred)
{
    OPENSSL_cleanse(cred, sizeof(*cred));
}

bool kh_credential_prove(void *cred, const char *label, const uint8_t *nonce_client,
                         const uint8_t *nonce_agent, uint8_t *proof)
{
    const kh_credential *credential = cred;
    uint8_t message[32 + 2 * KH_NONCE_LEN];
    size_t label_len = strlen(label);
    unsigned proof_len = 0;

    if (label_len > 32) {
        return false;
    }
    memcpy(message, label, label_len);
    memcpy(message + label_len, nonce_client, KH_NONCE_LEN);
    memcpy(message + label_len + KH_NONCE_LEN, nonce_agent, KH_NONCE_LEN);
    return HMAC(EVP_sha256(), credential->secret, KH_TOKEN_SECRET_LEN, message,
                label_len + 2 * (size_t)KH_NONCE_LEN, proof, &proof_len) != NULL &&
           proof_len == KH_PROOF_LEN;
}
