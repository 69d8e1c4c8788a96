/* SPDX-License-Identifier: Apache-2.0 */
/* The bare signer. PKCS#11 as it comes, with nothing of Keyhold's: it is what Keyhold is measured against. */
#define CRYPTOKI_GNU 1
#include "bare.h"

#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 64
#define SLOTS_MAX 64

typedef struct signer {
    struct ck_function_list *p11;
    ck_session_handle_t session;
    ck_object_handle_t key;
    const atomic_int *phase; /* 0: warming up, 1: counting, 2: over */
    uint64_t count;
    bool failed;
} signer;

static bool ok(const char *what, ck_rv_t rv)
{
    if (rv != CKR_OK) {
        fprintf(stderr, "keyhold-bench: %s: 0x%lx\n", what, rv);
    }
    return rv == CKR_OK;
}

static void *run(void *arg)
{
    signer *s = arg;
    struct ck_mechanism mechanism = {.mechanism = CKM_ECDSA};
    unsigned char hash[32] = {1}, signature[64];

    while (*s->phase < 2 && !s->failed) {
        unsigned long len = sizeof(signature);

        s->failed = !ok("C_SignInit", s->p11->C_SignInit(s->session, &mechanism, s->key)) ||
                    !ok("C_Sign", s->p11->C_Sign(s->session, hash, sizeof(hash), signature, &len));
        hash[0]++;
        s->count += *s->phase == 1 && !s->failed;
    }
    return NULL;
}

static bool open_module(const char *path, struct ck_function_list **p11)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    ck_rv_t (*get)(struct ck_function_list **) = NULL;
    struct ck_c_initialize_args args = {.flags = CKF_OS_LOCKING_OK};

    if (library != NULL) {
        *(void **)&get = dlsym(library, "C_GetFunctionList");
    }
    if (get == NULL) {
        fprintf(stderr, "keyhold-bench: %s: %s\n", path, dlerror());
        return false;
    }
    return ok("C_GetFunctionList", get(p11)) && ok("C_Initialize", (*p11)->C_Initialize(&args));
}

static bool find_slot(struct ck_function_list *p11, const char *label, ck_slot_id_t *slot)
{
    ck_slot_id_t slots[SLOTS_MAX];
    unsigned long count = SLOTS_MAX, i;

    if (!ok("C_GetSlotList", p11->C_GetSlotList(1, slots, &count))) {
        return false;
    }
    for (i = 0; i < count; i++) {
        struct ck_token_info info;

        if (p11->C_GetTokenInfo(slots[i], &info) == CKR_OK && strncmp((char *)info.label, label, strlen(label)) == 0) {
            *slot = slots[i];
            return true;
        }
    }
    fprintf(stderr, "keyhold-bench: no token %s\n", label);
    return false;
}

static bool find_key(signer *s, const char *label)
{
    ck_object_class_t class = CKO_PRIVATE_KEY;
    struct ck_attribute wanted[] = {{CKA_CLASS, &class, sizeof(class)}, {CKA_LABEL, (void *)label, strlen(label)}};
    unsigned long found = 0;

    if (!ok("C_FindObjectsInit", s->p11->C_FindObjectsInit(s->session, wanted, 2)) ||
        !ok("C_FindObjects", s->p11->C_FindObjects(s->session, &s->key, 1, &found)) ||
        !ok("C_FindObjectsFinal", s->p11->C_FindObjectsFinal(s->session))) {
        return false;
    }
    if (found == 0) {
        fprintf(stderr, "keyhold-bench: no key %s in the token\n", label);
    }
    return found > 0;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

    nanosleep(&time, NULL);
}

static bool measure(const kh_bare_config *config, double *per_second)
{
    static signer signers[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    struct ck_function_list *p11 = NULL;
    ck_slot_id_t slot = 0;
    atomic_int phase = 0;
    uint64_t count = 0;
    unsigned i;
    bool good = open_module(config->module, &p11) && find_slot(p11, config->token, &slot);

    for (i = 0; good && i < config->threads; i++) {
        signers[i] = (signer){.p11 = p11, .phase = &phase};
        good = ok("C_OpenSession", p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &signers[i].session)) &&
               (i > 0 || ok("C_Login", p11->C_Login(signers[0].session, CKU_USER, (unsigned char *)config->pin, strlen(config->pin)))) &&
               find_key(&signers[i], config->keys[i % config->key_count]);
    }
    if (!good) {
        return false;
    }
    for (i = 0; i < config->threads; i++) {
        if (pthread_create(&threads[i], NULL, run, &signers[i]) != 0) {
            _exit(1);
        }
    }
    sleep_ns(config->warmup_ns);
    phase = 1;
    sleep_ns(config->duration_ns);
    phase = 2;
    for (i = 0; i < config->threads; i++) {
        pthread_join(threads[i], NULL);
        count += signers[i].count;
        good = good && !signers[i].failed;
    }
    *per_second = (double)count * 1e9 / (double)config->duration_ns;
    return good;
}

bool kh_bare_run(const kh_bare_config *config, double *per_second)
{
    int pipe_fds[2], status = -1;
    pid_t pid;
    bool good;

    if (config->threads > THREADS_MAX || pipe(pipe_fds) != 0) {
        return false;
    }
    pid = fork();
    if (pid == 0) {
        for (const char *const *word = config->env; *word != NULL; word++) {
            putenv((char *)*word);
        }
        good = measure(config, per_second) && write(pipe_fds[1], per_second, sizeof(*per_second)) == sizeof(*per_second);
        _exit(good ? 0 : 1); /* no destructors: libraries of tokens bear them badly */
    }
    close(pipe_fds[1]);
    good = pid > 0 && read(pipe_fds[0], per_second, sizeof(*per_second)) == sizeof(*per_second);
    close(pipe_fds[0]);
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && good;
}
