/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kh-test-fill STORE KEKFILE N: puts N keys into a store in one transaction (P-256 and Ed25519 in turn, named
 * fill-000000 and so on, usage tls-server and sign). Makes the store and the KEK file if they are not there.
 */
#include "kek.h"
#include "store.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void log_line(void *ctx, kh_log_level level, const char *text)
{
    (void)ctx;
    if (level <= KH_LOG_WARN) {
        fprintf(stderr, "kh-test-fill: %s\n", text);
    }
}

static kh_result open_or_make(const char *path, const char *kek_path, kh_store **store)
{
    uint8_t kek[KH_KEK_LEN], import_public[32];
    kh_result result = KH_OK;

    if (access(kek_path, F_OK) != 0) {
        result = kh_kek_file_create(kek_path);
    }
    if (result == KH_OK) {
        result = kh_kek_file_load(kek_path, kek);
    }
    if (result == KH_OK && access(path, F_OK) != 0) {
        result = kh_store_init(path, KH_KEK_FILE, kek, sizeof(kek), import_public);
    }
    if (result == KH_OK) {
        result = kh_store_open(path, KH_KEK_FILE, kek, sizeof(kek), log_line, NULL, store);
    }
    OPENSSL_cleanse(kek, sizeof(kek));
    return result;
}

static kh_result fill(kh_store *store, unsigned long count)
{
    kh_material material;
    kh_result result = kh_store_begin(store);

    for (unsigned long i = 0; result == KH_OK && i < count; i++) {
        kh_key_info info = {.usage = KH_USAGE_TLS_SERVER | KH_USAGE_SIGN};

        snprintf(info.name, sizeof(info.name), "fill-%06lu", i);
        result = kh_material_generate(i % 2 == 0 ? KH_KEY_P256 : KH_KEY_ED25519, 256, &material);
        if (result == KH_OK) {
            result = kh_store_insert(store, KH_ASKER_ROOT, &info, &material);
        }
    }
    kh_material_wipe(&material);
    return result == KH_OK ? kh_store_commit(store) : result;
}

int main(int argc, char **argv)
{
    kh_store *store = NULL;
    kh_result result = KH_OK;
    unsigned long count = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;

    kh_secure_openssl();
    if (count == 0) {
        fprintf(stderr, "usage: kh-test-fill STORE KEKFILE N\n");
        return 2;
    }
    result = open_or_make(argv[1], argv[2], &store);
    if (result == KH_OK) {
        result = fill(store, count);
    }
    kh_store_close(store);
    if (result != KH_OK) {
        fprintf(stderr, "kh-test-fill: %s\n", kh_result_text(result));
        return 1;
    }
    printf("%lu keys\n", count);
    return 0;
}
