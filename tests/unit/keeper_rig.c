/* SPDX-License-Identifier: Apache-2.0 */
/* A real keeper process and a test program as its front, over a real ring. */
#include "keeper_rig.h"

#include <keyhold/import.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <openssl/crypto.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s (errno %s)\n", __FILE__, __LINE__, #condition, strerror(errno));      \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static rig_answer answer;

void rig_init(keeper_rig *rig, const char *parent)
{
    const char *tmp = parent != NULL ? parent : getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";

    memset(rig, 0, sizeof(*rig));
    snprintf(rig->dir, sizeof(rig->dir), "%s/keyhold-keeper-XXXXXX", tmp);
    CHECK(mkdtemp(rig->dir) != NULL);
    snprintf(rig->store, sizeof(rig->store), "%s/store", rig->dir);
    snprintf(rig->kek_file, sizeof(rig->kek_file), "%s/kek", rig->dir);
    snprintf(rig->admin, sizeof(rig->admin), "%s/admin", rig->dir);
    snprintf(rig->log, sizeof(rig->log), "%s/log", rig->dir);
    CHECK(kh_kek_file_create(rig->kek_file) == KH_OK);
    CHECK(kh_kek_file_load(rig->kek_file, rig->kek) == KH_OK);
    CHECK(kh_store_init(rig->store, KH_KEK_FILE, rig->kek, 32, rig->import_public) == KH_OK);
    rig->workers = 2;
    rig->slots = 256;
    rig->control = -1;
}

typedef struct child {
    int ready_fd;
    int log_fd;
} child;

static void child_log(void *ctx, kh_log_level level, const char *text)
{
    char line[600];
    int n = snprintf(line, sizeof(line), "%d %s\n", (int)level, text);

    CHECK(write(((child *)ctx)->log_fd, line, (size_t)n) == n);
}

static void child_ready(void *ctx)
{
    CHECK(write(((child *)ctx)->ready_fd, "", 1) == 1);
}

static void run_child(keeper_rig *rig, int control, int ready_fd)
{
    child self = {ready_fd, open(rig->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int admin = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    kh_keeper_config config = {.store_path = rig->store,
                               .kek_kind = KH_KEK_FILE,
                               .kek_secret = rig->kek,
                               .kek_secret_len = 32,
                               .workers = rig->workers,
                               .cache_keys = rig->cache_keys,
                               .batch_window_us = rig->batch_window_us,
                               .use_kernels = true,
                               .control_fd = control,
                               .admin_fd = admin,
                               .ready = child_ready,
                               .log = child_log,
                               .ctx = &self};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    unlink(rig->admin);
    memcpy(address.sun_path, rig->admin,
           sizeof(address.sun_path) < strlen(rig->admin) + 1 ? 0 : strlen(rig->admin) + 1);
    CHECK(bind(admin, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(admin, 16) == 0);
    _exit((int)kh_keeper_run(&config));
}

kh_result rig_reap(keeper_rig *rig)
{
    int status = 0;

    while (waitpid(rig->pid, &status, 0) < 0) {
        CHECK(errno == EINTR);
    }
    rig->pid = 0;
    return WIFEXITED(status) ? (kh_result)WEXITSTATUS(status) : KH_E_INTERNAL;
}

void rig_new_ring(keeper_rig *rig)
{
    int fds[3], mine[3];

    CHECK(kh_ring_create(rig->slots, fds) == KH_OK);
    CHECK(kh_keeper_send_ring(rig->control, fds) == KH_OK);
    for (int i = 0; i < 3; i++) {
        mine[i] = dup(fds[i]);
        CHECK(mine[i] >= 0);
        close(fds[i]);
    }
    kh_keystore_free(rig->keystore);
    CHECK(kh_keystore_attach(mine, &rig->keystore) == KH_OK);
}

kh_result rig_start(keeper_rig *rig)
{
    int pair[2], ready[2];
    char byte = 0;
    ssize_t n = 0;

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0 && pipe(ready) == 0);
    rig->pid = fork();
    CHECK(rig->pid >= 0);
    if (rig->pid == 0) {
        close(pair[0]);
        close(ready[0]);
        run_child(rig, pair[1], ready[1]);
    }
    close(pair[1]);
    close(ready[1]);
    n = read(ready[0], &byte, 1);
    close(ready[0]);
    rig->control = pair[0];
    if (n != 1) {
        close(rig->control);
        rig->control = -1;
        return rig_reap(rig);
    }
    rig_new_ring(rig);
    return KH_OK;
}

static void detach(keeper_rig *rig)
{
    if (rig->control >= 0) {
        close(rig->control);
    }
    rig->control = -1;
    kh_keystore_free(rig->keystore);
    rig->keystore = NULL;
}

kh_result rig_stop(keeper_rig *rig)
{
    kh_result result = KH_OK;

    CHECK(kh_keeper_send_stop(rig->control) == KH_OK);
    result = rig_reap(rig);
    detach(rig);
    return result;
}

void rig_kill(keeper_rig *rig)
{
    kill(rig->pid, SIGKILL);
    (void)rig_reap(rig);
    detach(rig);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

void rig_clean(keeper_rig *rig)
{
    nftw(rig->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const rig_answer *rig_wait(keeper_rig *rig, uint64_t *cookie)
{
    kh_completion completion;
    struct pollfd pfd = {.fd = kh_keystore_event_fd(rig->keystore), .events = POLLIN};

    while (kh_keystore_collect(rig->keystore, &completion, 1) == 0) {
        int n = poll(&pfd, 1, 60000);

        CHECK(n > 0 || (n < 0 && errno == EINTR));
    }
    answer.result = completion.result;
    answer.len = completion.data_len;
    answer.batch = completion.batch;
    memcpy(answer.data, completion.data, completion.data_len);
    if (cookie != NULL) {
        *cookie = completion.cookie;
    }
    kh_keystore_release(rig->keystore, &completion);
    return &answer;
}

const rig_answer *rig_call(keeper_rig *rig, const kh_record *record)
{
    kh_record mine = *record;
    uint64_t cookie = 0;

    mine.cookie = ++rig->cookie;
    answer.result = kh_keystore_submit(rig->keystore, &mine);
    answer.len = 0;
    if (answer.result != KH_OK) {
        return &answer;
    }
    kh_keystore_flush(rig->keystore);
    do {
        rig_wait(rig, &cookie);
    } while (cookie != mine.cookie);
    return &answer;
}

const rig_answer *rig_admin(keeper_rig *rig, const kh_record *record)
{
    size_t len = 0;

    answer.result = kh_admin_call(rig->admin, record, answer.data, sizeof(answer.data), &len, 60000);
    answer.len = (uint32_t)len;
    return &answer;
}

/* ---- Operations ---------------------------------------------------------------------------------------- */

static kh_result take_info(const rig_answer *got, kh_key_info *info)
{
    if (got->result == KH_OK) {
        CHECK(got->len >= sizeof(kh_key_info));
        if (info != NULL) {
            memcpy(info, got->data, sizeof(*info));
        }
    }
    return got->result;
}

kh_result rig_create(keeper_rig *rig, const char *name, kh_key_type type, unsigned bits, uint32_t usage,
                     uint32_t flags, kh_key_info *info)
{
    kh_key_info asked = {.type = (uint32_t)type, .bits = bits, .usage = usage, .flags = flags};
    kh_record record = {.op = KH_STORE_CREATE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    return take_info(rig_call(rig, &record), info);
}

void rig_wrap(keeper_rig *rig, const char *name, EVP_PKEY *pkey, uint32_t usage, uint32_t flags,
              uint8_t *sealed, size_t cap, size_t *sealed_len)
{
    PKCS8_PRIV_KEY_INFO *p8 = EVP_PKEY2PKCS8(pkey);
    uint8_t *der = NULL;
    int der_len = i2d_PKCS8_PRIV_KEY_INFO(p8, &der);

    CHECK(der_len > 0);
    CHECK(kh_import_seal(rig->import_public, name, usage, flags, der, (size_t)der_len, sealed, cap,
                         sealed_len) == KH_OK);
    PKCS8_PRIV_KEY_INFO_free(p8);
    OPENSSL_free(der);
}

kh_result rig_import(keeper_rig *rig, const char *name, EVP_PKEY *pkey, uint32_t usage, uint32_t flags,
                     kh_key_info *info)
{
    static uint8_t data[sizeof(kh_key_info) + KH_IMPORT_PKCS8_MAX + KH_IMPORT_OVERHEAD];
    kh_key_info asked = {.usage = usage, .flags = flags};
    size_t sealed_len = 0;
    kh_record record = {.op = KH_STORE_IMPORT, .data = data};

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    memcpy(data, &asked, sizeof(asked));
    rig_wrap(rig, name, pkey, usage, flags, data + sizeof(asked), sizeof(data) - sizeof(asked), &sealed_len);
    record.data_len = (uint32_t)(sizeof(asked) + sealed_len);
    return take_info(rig_call(rig, &record), info);
}

kh_result rig_set_state(keeper_rig *rig, const char *name, uint32_t version, uint32_t state,
                        kh_key_info *info)
{
    kh_key_info asked = {.version = version, .state = state};
    kh_record record = {.op = KH_STORE_SET_STATE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};

    snprintf(asked.name, sizeof(asked.name), "%s", name);
    return take_info(rig_call(rig, &record), info);
}

kh_result rig_lookup(keeper_rig *rig, const char *name, kh_key_info *info)
{
    kh_record record = {
        .op = KH_STORE_LOOKUP, .data = (const uint8_t *)name, .data_len = (uint32_t)strlen(name)};

    return take_info(rig_call(rig, &record), info);
}

kh_result rig_sign(keeper_rig *rig, const kh_key_info *key, uint32_t scheme, uint32_t flags, const void *data,
                   size_t len)
{
    kh_record record = {.op = KH_STORE_SIGN,
                        .key_ref = key->ref,
                        .scheme = scheme,
                        .flags = flags,
                        .data = data,
                        .data_len = (uint32_t)len};

    return rig_call(rig, &record)->result;
}

EVP_PKEY *rig_public(const kh_key_info *info)
{
    const uint8_t *at = info->spki;

    return d2i_PUBKEY(NULL, &at, (long)info->spki_len);
}

bool rig_verify(const uint8_t *spki, size_t spki_len, uint32_t scheme, bool is_digest, const void *data,
                size_t len, const uint8_t *signature, size_t signature_len)
{
    static const char *const names[] = {[32] = "SHA256", [48] = "SHA384", [64] = "SHA512"};
    const uint8_t *at = spki;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    EVP_MD_CTX *md_ctx = EVP_MD_CTX_new();
    EVP_PKEY_CTX *ctx = NULL;
    size_t hash_len = kh_scheme_hash_len((int)scheme);
    const char *md = hash_len != 0 ? names[hash_len] : NULL;
    bool pss = (scheme >> 8) == 8 && scheme != KH_ED25519;
    uint8_t digest[64];
    unsigned digest_len = 0;
    bool good = false;

    CHECK(pkey != NULL);
    if (md == NULL) {
        good = EVP_DigestVerifyInit_ex(md_ctx, NULL, NULL, NULL, NULL, pkey, NULL) == 1 &&
               EVP_DigestVerify(md_ctx, signature, signature_len, data, len) == 1;
    } else {
        if (is_digest) {
            memcpy(digest, data, len);
        } else {
            CHECK(EVP_Digest(data, len, digest, &digest_len, EVP_get_digestbyname(md), NULL) == 1);
        }
        ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
        CHECK(EVP_PKEY_verify_init(ctx) == 1);
        if (EVP_PKEY_is_a(pkey, "RSA")) {
            CHECK(EVP_PKEY_CTX_set_rsa_padding(ctx, pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING) == 1);
        }
        CHECK(EVP_PKEY_CTX_set_signature_md(ctx, EVP_get_digestbyname(md)) == 1);
        if (pss) {
            CHECK(EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, RSA_PSS_SALTLEN_DIGEST) == 1);
        }
        good = EVP_PKEY_verify(ctx, signature, signature_len, digest, hash_len) == 1;
    }
    EVP_PKEY_CTX_free(ctx);
    EVP_MD_CTX_free(md_ctx);
    EVP_PKEY_free(pkey);
    return good;
}

bool rig_logged(keeper_rig *rig, const char *what, const char *name)
{
    FILE *file = fopen(rig->log, "r");
    char line[1024];
    bool found = false;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        found |= strstr(line, what) != NULL && strstr(line, name) != NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

size_t rig_tls13_message(uint8_t *message, const char *side, size_t hash_len)
{
    size_t n = 0;

    memset(message, ' ', 64);
    n = 64 + (size_t)sprintf((char *)message + 64, "TLS 1.3, %s CertificateVerify", side) + 1;
    for (size_t i = 0; i < hash_len; i++) {
        message[n++] = (uint8_t)(i * 7 + 1);
    }
    return n;
}
