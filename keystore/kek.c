/* SPDX-License-Identifier: Apache-2.0 */
/* The key-encryption key: KEK files, and passphrases by scrypt (RFC 7914). */
#include "kek.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_PREFIX "keyhold-kek-1 "
#define FILE_PREFIX_LEN (sizeof(FILE_PREFIX) - 1)
#define FILE_LEN (FILE_PREFIX_LEN + 2 * KH_KEK_LEN + 1)
#define SALT_LEN 16
/* N = 2^17, r = 8, p = 1: 128 MB and about half a second, once at start. */
#define SCRYPT_LOG2_N 17
#define SCRYPT_R 8
#define SCRYPT_P 1

kh_result kh_kek_params_new(kh_kek_kind kind, uint8_t params[KH_KEK_PARAMS_LEN])
{
    memset(params, 0, KH_KEK_PARAMS_LEN);
    if (kind == KH_KEK_FILE) {
        return KH_OK;
    }
    if (kind != KH_KEK_PASSPHRASE) {
        return KH_E_INVALID;
    }
    params[0] = SCRYPT_LOG2_N;
    params[1] = SCRYPT_R;
    params[2] = SCRYPT_P;
    return RAND_bytes(params + 3, SALT_LEN) == 1 ? KH_OK : KH_E_CRYPTO;
}

/* They come from a file that somebody may have changed: bounded before memory is spent on them. */
static bool in_range(const uint8_t params[KH_KEK_PARAMS_LEN])
{
    return params[0] >= 10 && params[0] <= 20 && params[1] >= 1 && params[1] <= 16 && params[2] >= 1 && params[2] <= 16;
}

bool kh_kek_recipe_good(const uint8_t recipe[KH_KEK_RECIPE_LEN])
{
    static const uint8_t of_file[KH_KEK_RECIPE_LEN] = {KH_KEK_FILE};

    return memcmp(recipe, of_file, sizeof(of_file)) == 0 || (recipe[0] == KH_KEK_PASSPHRASE && in_range(recipe + 1));
}

kh_result kh_kek_derive(kh_kek_kind kind, const uint8_t *secret, size_t secret_len,
                        const uint8_t params[KH_KEK_PARAMS_LEN], uint8_t kek[KH_KEK_LEN])
{
    if (kind == KH_KEK_FILE) {
        if (secret_len != KH_KEK_LEN) {
            return KH_E_INVALID;
        }
        memcpy(kek, secret, KH_KEK_LEN);
        return KH_OK;
    }
    if (kind != KH_KEK_PASSPHRASE || secret_len == 0) {
        return KH_E_INVALID;
    }
    if (!in_range(params)) {
        return KH_E_DAMAGED;
    }
    return EVP_PBE_scrypt((const char *)secret, secret_len, params + 3, SALT_LEN, UINT64_C(1) << params[0],
                          params[1], params[2], UINT64_C(1) << 32, kek, KH_KEK_LEN) == 1
               ? KH_OK
               : KH_E_MEMORY;
}

/* What seals other things than the store key does not do it with the KEK itself. HKDF-Expand, one block. */
kh_result kh_kek_transfer_key(const uint8_t kek[KH_KEK_LEN], uint8_t key[32])
{
    static const uint8_t info[] = "keyhold transfer key 1\x01";

    return HMAC(EVP_sha256(), kek, KH_KEK_LEN, info, sizeof(info) - 1, key, NULL) != NULL ? KH_OK
                                                                                          : KH_E_CRYPTO;
}

int kh_kek_hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static bool write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        len -= (size_t)n;
    }
    return true;
}

void kh_kek_hex(const uint8_t *data, size_t len, char *text)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < len; i++) {
        text[2 * i] = digits[data[i] >> 4];
        text[2 * i + 1] = digits[data[i] & 15];
    }
}

kh_result kh_kek_line_create(const char *path, const char *line, size_t len)
{
    kh_result result = KH_E_IO;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return errno == EEXIST ? KH_E_EXISTS : KH_E_IO;
    }
    if (!write_all(fd, line, len) || fsync(fd) != 0) {
        unlink(path);
        goto done;
    }
    result = KH_OK;
done:
    if (close(fd) != 0 && result == KH_OK) {
        result = KH_E_IO;
    }
    return result;
}

kh_result kh_kek_file_create(const char *path)
{
    uint8_t kek[KH_KEK_LEN] = {0};
    char line[FILE_LEN];
    kh_result result = KH_OK;

    memcpy(line, FILE_PREFIX, FILE_PREFIX_LEN);
    if (RAND_bytes(kek, sizeof(kek)) != 1) {
        result = KH_E_CRYPTO;
        goto done;
    }
    kh_kek_hex(kek, sizeof(kek), line + FILE_PREFIX_LEN);
    line[FILE_LEN - 1] = '\n';
    result = kh_kek_line_create(path, line, sizeof(line));
done:
    OPENSSL_cleanse(kek, sizeof(kek));
    OPENSSL_cleanse(line, sizeof(line));
    return result;
}

static kh_result parse_line(const char *line, uint8_t kek[KH_KEK_LEN])
{
    if (memcmp(line, FILE_PREFIX, FILE_PREFIX_LEN) != 0) {
        return KH_E_MALFORMED;
    }
    for (size_t i = 0; i < KH_KEK_LEN; i++) {
        int high = kh_kek_hex_value(line[FILE_PREFIX_LEN + 2 * i]),
            low = kh_kek_hex_value(line[FILE_PREFIX_LEN + 2 * i + 1]);

        if (high < 0 || low < 0) {
            return KH_E_MALFORMED;
        }
        kek[i] = (uint8_t)(high << 4 | low);
    }
    return KH_OK;
}

kh_result kh_kek_line_load(const char *path, char *line, size_t cap, size_t *len)
{
    struct stat st;
    ssize_t n = 0;
    kh_result result = KH_E_IO;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *len = 0;
    if (fd < 0 || fstat(fd, &st) != 0) {
        goto done;
    }
    if ((st.st_mode & 077) != 0) {
        result = KH_E_FORBIDDEN;
        goto done;
    }
    n = read(fd, line, cap);
    if (n < 0) {
        goto done;
    }
    *len = (size_t)n;
    if (n > 0 && line[n - 1] == '\n') {
        (*len)--;
    }
    result = KH_OK;
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

kh_result kh_kek_file_load(const char *path, uint8_t kek[KH_KEK_LEN])
{
    char line[FILE_LEN + 1];
    size_t len = 0;
    kh_result result = kh_kek_line_load(path, line, sizeof(line), &len);

    if (result == KH_OK) {
        result = len == FILE_LEN - 1 ? parse_line(line, kek) : KH_E_MALFORMED;
    }
    OPENSSL_cleanse(line, sizeof(line));
    return result;
}
