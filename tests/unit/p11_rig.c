/* SPDX-License-Identifier: Apache-2.0 */
/* Real SoftHSM tokens for tests, in a directory of the test's own. */
#include "p11_rig.h"

#include <dlfcn.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef __SANITIZE_ADDRESS__
/* SoftHSM 2.6.1 loses a string with each Ed25519 key; its frames are seen only by the slow way to walk a
 * stack. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "fast_unwind_on_malloc=0:malloc_context_size=12";
}
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libsofthsm2.so\n";
}
#endif

static char directory[256];

const char *rig_softhsm(void)
{
    static const char *const paths[] = {
        "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"};

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        if (access(paths[i], R_OK) == 0) {
            return paths[i];
        }
    }
    printf("skipped: softhsm2 is not installed (no libsofthsm2.so)\n");
    return NULL;
}

static void run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *format, ...)
{
    char command[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    assert_int_equal(system(command), 0);
}

void rig_directory(void)
{
    const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR"); /* SoftHSM writes a lot */
    char path[300];
    FILE *file = NULL;

    if (directory[0] != '\0') {
        return;
    }
    snprintf(directory, sizeof(directory), "%s/kh-p11-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/tokens", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/softhsm2.conf", directory);
    file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n",
            directory);
    fclose(file);
    setenv("SOFTHSM2_CONF", path, 1);
}

void rig_token(const char *label)
{
    rig_directory();
    run("softhsm2-util --init-token --free --label '%s' --so-pin 12345678 --pin " RIG_PIN
        " >%s/init.log 2>&1",
        label, directory);
}

static void print_log(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    printf("log %d: %s\n", (int)level, text);
}

kh_p11 *rig_open(const char *module, const char *label)
{
    kh_p11_config config = {.module = module != NULL ? module : rig_softhsm(),
                            .label = label,
                            .pin = (const uint8_t *)RIG_PIN,
                            .pin_len = strlen(RIG_PIN),
                            .log = print_log};
    kh_p11 *p11 = NULL;

    assert_int_equal(kh_p11_open(&config, &p11), KH_OK);
    assert_int_equal(kh_p11_login(p11), KH_OK);
    return p11;
}

void *rig_symbol(const char *name)
{
    void *library = dlopen(rig_softhsm(), RTLD_NOW | RTLD_LOCAL), *symbol = NULL;

    assert_non_null(library);
    symbol = dlsym(library, name);
    assert_non_null(symbol);
    return symbol;
}

void rig_clean(void)
{
    if (directory[0] != '\0') {
        run("rm -rf '%s'", directory);
        directory[0] = '\0';
    }
}

void rig_rules(const char *text)
{
    char path[300], next[310];
    FILE *file = NULL;

    rig_directory();
    snprintf(path, sizeof(path), "%s/control", directory);
    setenv("KH_SHIM_MODULE", rig_softhsm(), 1);
    setenv("KH_SHIM_CONTROL", path, 1);
    snprintf(next, sizeof(next), "%s.next", path);
    file = fopen(next, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(rename(next, path), 0);
}

kh_p11_locator rig_locator(uint8_t id, const char *label)
{
    kh_p11_locator locator = {.id_len = KH_P11_ID_LEN};

    memset(locator.id, id, KH_P11_ID_LEN);
    snprintf(locator.label, sizeof(locator.label), "%s", label);
    return locator;
}

bool rig_verify(const uint8_t *spki, size_t spki_len, uint32_t scheme, const uint8_t *message, size_t len,
                const uint8_t *signature, size_t signature_len)
{
    size_t hash_len = kh_scheme_hash_len((int)scheme);
    const char *md = hash_len == 32 ? "SHA256" : hash_len == 48 ? "SHA384" : hash_len == 64 ? "SHA512" : NULL;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &spki, (long)spki_len);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *pctx = NULL;
    bool good =
        pkey != NULL && ctx != NULL && EVP_DigestVerifyInit_ex(ctx, &pctx, md, NULL, NULL, pkey, NULL) == 1;

    if (good && (scheme >> 8) == 0x08 && hash_len > 0) {
        good = EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) == 1 &&
               EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) == 1;
    }
    good = good && EVP_DigestVerify(ctx, signature, signature_len, message, len) == 1;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(pkey);
    return good;
}
