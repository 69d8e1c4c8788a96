/* SPDX-License-Identifier: Apache-2.0 */
/* A PKCS#11 module and the one token in it: loading, finding, what it can do, logging in. */
#include "algorithms.h"
#include "p11_internal.h"

#include <dlfcn.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_MAX 256

/* PKCS#11 3.0, section 5.4.4: what C_GetInterface answers. The 3.0 list begins as the 2.40 one does. */
typedef struct kh_ck_interface {
    CK_UTF8CHAR *name;
    CK_FUNCTION_LIST *functions;
    CK_FLAGS flags;
} kh_ck_interface;
typedef CK_RV (*kh_get_interface_fn)(CK_UTF8CHAR *name, CK_VERSION *version, kh_ck_interface **interface,
                                     CK_FLAGS flags);

void kh_p11_unpad(const unsigned char *field, size_t len, char *text)
{
    while (len > 0 && (field[len - 1] == ' ' || field[len - 1] == '\0')) {
        len--;
    }
    memcpy(text, field, len);
    text[len] = '\0';
}

static const char *name_of(CK_RV rv)
{
    const kh_p11_meaning *meaning = kh_p11_meaning_of(rv);

    return meaning->name != NULL ? meaning->name : "an error of the vendor's";
}

/* A call without a session failed: says so once, and what it means. */
static kh_result failed(const kh_p11 *p11, const char *function, CK_RV rv)
{
    kh_result result = kh_p11_meaning_of(rv)->result;

    kh_p11_log(p11, KH_LOG_DEBUG, "%s: %s (0x%lx)", function, name_of(rv), (unsigned long)rv);
    return result == KH_OK ? KH_E_UNAVAILABLE : result;
}

static kh_result load(kh_p11 *p11, const char *path)
{
    CK_C_GetFunctionList get_list = NULL;
    kh_get_interface_fn get_interface = NULL;
    kh_ck_interface *interface = NULL;
    CK_RV rv = CKR_FUNCTION_NOT_SUPPORTED;

    /* Never unloaded: libraries of vendors leave threads and handlers behind. Loaded again it is the same. */
    p11->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (p11->library == NULL) {
        kh_p11_log(p11, KH_LOG_ERROR, "the PKCS#11 module does not load: %s", dlerror());
        return KH_E_NOT_FOUND;
    }
    *(void **)&get_list = dlsym(p11->library, "C_GetFunctionList");
    if (get_list != NULL) {
        rv = get_list(&p11->f);
    } else {
        *(void **)&get_interface = dlsym(p11->library, "C_GetInterface");
        if (get_interface != NULL) {
            rv = get_interface((CK_UTF8CHAR *)"PKCS 11", NULL, &interface, 0);
            p11->f = rv == CKR_OK && interface != NULL ? interface->functions : NULL;
        }
    }
    if (rv != CKR_OK || p11->f == NULL) {
        kh_p11_log(p11, KH_LOG_ERROR,
                   "%s is no PKCS#11 module: it has neither C_GetFunctionList nor C_GetInterface", path);
        return KH_E_NOT_FOUND;
    }
    return KH_OK;
}

static kh_result initialize(kh_p11 *p11)
{
    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    CK_RV rv = p11->f->C_Initialize(&args);

    if (rv == CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        return KH_OK;
    }
    if (rv == CKR_CANT_LOCK || rv == CKR_NEED_TO_CREATE_THREADS) {
        kh_p11_log(p11, KH_LOG_ERROR,
                   "the PKCS#11 module cannot be used by several threads (C_Initialize: %s)", name_of(rv));
        return KH_E_UNSUPPORTED;
    }
    if (rv != CKR_OK) {
        return failed(p11, "C_Initialize", rv);
    }
    p11->initialized = true;
    return KH_OK;
}

static bool fits(const kh_p11_config *config, const CK_TOKEN_INFO *info)
{
    char label[KH_P11_FIELD_MAX + 1], serial[sizeof(info->serialNumber) + 1];

    kh_p11_unpad(info->label, sizeof(info->label), label);
    kh_p11_unpad(info->serialNumber, sizeof(info->serialNumber), serial);
    return (info->flags & CKF_TOKEN_INITIALIZED) != 0 &&
           (config->label == NULL || strcmp(config->label, label) == 0) &&
           (config->serial == NULL || strcmp(config->serial, serial) == 0);
}

static kh_result find_token(kh_p11 *p11, const kh_p11_config *config)
{
    CK_SLOT_ID slots[SLOTS_MAX];
    CK_ULONG count = SLOTS_MAX, found = 0;
    CK_TOKEN_INFO info;
    CK_RV rv = p11->f->C_GetSlotList(CK_TRUE, slots, &count);

    if (rv != CKR_OK || count > SLOTS_MAX) {
        return failed(p11, "C_GetSlotList", rv);
    }
    for (CK_ULONG i = 0; i < count; i++) {
        if (p11->f->C_GetTokenInfo(slots[i], &info) != CKR_OK || !fits(config, &info)) {
            continue;
        }
        found++;
        p11->slot = slots[i];
        p11->login_required = (info.flags & CKF_LOGIN_REQUIRED) != 0;
        kh_p11_unpad(info.label, sizeof(info.label), p11->label);
        kh_p11_unpad(info.serialNumber, sizeof(info.serialNumber), p11->serial);
    }
    if (found > 1) {
        kh_p11_log(p11, KH_LOG_ERROR, "%lu tokens of the PKCS#11 module fit: say which by label and serial",
                   (unsigned long)found);
        return KH_E_INVALID;
    }
    return found == 1 ? KH_OK : KH_E_NOT_FOUND;
}

static int by_type(const void *a, const void *b)
{
    const kh_p11_mechanism *left = a, *right = b;

    return (left->type > right->type) - (left->type < right->type);
}

static kh_result probe_mechanisms(kh_p11 *p11)
{
    CK_MECHANISM_TYPE types[KH_P11_MECHANISMS_MAX];
    CK_ULONG count = KH_P11_MECHANISMS_MAX;
    CK_RV rv = p11->f->C_GetMechanismList(p11->slot, types, &count);

    if (rv != CKR_OK || count > KH_P11_MECHANISMS_MAX) {
        return failed(p11, "C_GetMechanismList", rv);
    }
    p11->mechanisms = calloc(count > 0 ? count : 1, sizeof(*p11->mechanisms));
    if (p11->mechanisms == NULL) {
        return KH_E_MEMORY;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        kh_p11_mechanism *mechanism = &p11->mechanisms[p11->mechanism_count];

        mechanism->type = types[i];
        if (p11->f->C_GetMechanismInfo(p11->slot, types[i], &mechanism->info) == CKR_OK) {
            p11->mechanism_count++;
        }
    }
    qsort(p11->mechanisms, p11->mechanism_count, sizeof(*p11->mechanisms), by_type);
    return KH_OK;
}

bool kh_p11_has_for(const kh_p11 *p11, CK_MECHANISM_TYPE type, CK_FLAGS flags, uint32_t bits)
{
    const kh_p11_mechanism wanted = {.type = type};
    const kh_p11_mechanism *found =
        bsearch(&wanted, p11->mechanisms, p11->mechanism_count, sizeof(wanted), by_type);

    /* Some say sizes in bytes, some nothing: a maximum below 1024 of an RSA mechanism is not one of bits. */
    return found != NULL && (found->info.flags & flags) == flags &&
           (bits < 1024 || found->info.ulMaxKeySize < 1024 || bits <= found->info.ulMaxKeySize);
}

bool kh_p11_has(const kh_p11 *p11, CK_MECHANISM_TYPE type, CK_FLAGS flags)
{
    return kh_p11_has_for(p11, type, flags, 0);
}

kh_result kh_p11_open(const kh_p11_config *config, kh_p11 **out)
{
    kh_p11 *p11 = calloc(1, sizeof(*p11));
    kh_result result = KH_E_INVALID;

    *out = NULL;
    if (p11 == NULL) {
        return KH_E_MEMORY;
    }
    pthread_mutex_init(&p11->login_lock, NULL);
    p11->log = config->log;
    p11->log_ctx = config->log_ctx;
    if (config->pin_len > sizeof(p11->pin)) {
        goto done;
    }
    if (config->pin != NULL) {
        memcpy(p11->pin, config->pin, config->pin_len);
        p11->pin_len = config->pin_len;
        p11->has_pin = true;
        p11->new_pin = config->new_pin;
    }
    result = kh_algorithms_init();
    if (result != KH_OK) {
        goto done;
    }
    result = load(p11, config->module);
    if (result != KH_OK) {
        goto done;
    }
    result = initialize(p11);
    if (result != KH_OK) {
        goto done;
    }
    result = find_token(p11, config);
    if (result != KH_OK) {
        goto done;
    }
    result = probe_mechanisms(p11);
    if (result != KH_OK) {
        goto done;
    }
    kh_p11_log_anew();
    *out = p11;
    p11 = NULL;
done:
    kh_p11_close(p11);
    return result;
}

void kh_p11_close(kh_p11 *p11)
{
    if (p11 == NULL) {
        return;
    }
    if (p11->initialized) {
        p11->f->C_Finalize(NULL);
    }
    if (p11->library != NULL) {
        dlclose(p11->library);
    }
    pthread_mutex_destroy(&p11->login_lock);
    free(p11->mechanisms);
    OPENSSL_cleanse(p11, sizeof(*p11));
    free(p11);
}

/* Under login_lock. */
static bool still_logged_in(kh_p11 *p11)
{
    CK_SESSION_INFO info;

    return p11->logged_in && p11->f->C_GetSessionInfo(p11->login_session, &info) == CKR_OK &&
           (info.state == CKS_RO_USER_FUNCTIONS || info.state == CKS_RW_USER_FUNCTIONS);
}

/* Under login_lock. What a token says of the PIN's tries before and after one. */
static bool token_flags(kh_p11 *p11, CK_FLAGS *flags)
{
    CK_TOKEN_INFO info;

    *flags = 0;
    if (p11->f->C_GetTokenInfo(p11->slot, &info) != CKR_OK) {
        return false;
    }
    *flags = info.flags;
    return true;
}

/* Under login_lock. Some libraries have no word of their own for a wrong PIN: then the token's count of tries
 * tells. */
static kh_result judge_login(kh_p11 *p11, CK_RV rv)
{
    kh_result result = failed(p11, "C_Login", rv);
    CK_FLAGS flags = 0;

    if (result != KH_E_PASSPHRASE && result != KH_E_LOCKED && token_flags(p11, &flags)) {
        result = (flags & CKF_USER_PIN_LOCKED) != 0                                 ? KH_E_LOCKED
                 : (flags & (CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY)) != 0 ? KH_E_PASSPHRASE
                                                                                    : result;
    }
    if (result == KH_E_PASSPHRASE || result == KH_E_LOCKED) {
        p11->pin_refused = result;
    }
    return result;
}

/* Under login_lock. */
static kh_result log_in(kh_p11 *p11)
{
    CK_FLAGS flags = 0;
    CK_RV rv = CKR_OK;

    if (!token_flags(p11, &flags)) {
        return KH_E_UNAVAILABLE;
    }
    if ((flags & CKF_USER_PIN_LOCKED) != 0) {
        return p11->pin_refused = KH_E_LOCKED;
    }
    if ((flags & CKF_USER_PIN_FINAL_TRY) != 0 && !p11->new_pin) {
        kh_p11_log(p11, KH_LOG_ERROR,
                   "token %s: the PIN is not tried, since one more wrong one would lock it: log in once by "
                   "its own tool",
                   p11->label);
        return p11->pin_refused = KH_E_LOCKED;
    }
    if (p11->logged_in) {
        p11->f->C_CloseSession(p11->login_session); /* dead, or its login is */
        p11->logged_in = false;
    }
    rv = p11->f->C_OpenSession(p11->slot, CKF_SERIAL_SESSION, NULL, NULL, &p11->login_session);
    if (rv != CKR_OK) {
        return failed(p11, "C_OpenSession", rv);
    }
    rv = p11->f->C_Login(p11->login_session, CKU_USER, p11->has_pin ? p11->pin : NULL, p11->pin_len);
    if (rv != CKR_OK && rv != CKR_USER_ALREADY_LOGGED_IN) {
        p11->f->C_CloseSession(p11->login_session);
        return judge_login(p11, rv);
    }
    p11->logged_in = p11->login_holds = true;
    return KH_OK;
}

kh_result kh_p11_login(kh_p11 *p11)
{
    CK_FLAGS flags = 0;
    kh_result result = KH_OK;

    if (!p11->login_required) {
        return KH_OK;
    }
    if (!p11->has_pin && (!token_flags(p11, &flags) || (flags & CKF_PROTECTED_AUTHENTICATION_PATH) == 0)) {
        return KH_OK; /* public objects only */
    }
    pthread_mutex_lock(&p11->login_lock);
    if (p11->pin_refused != KH_OK) {
        result = p11->pin_refused;
    } else if (!still_logged_in(p11)) {
        result = log_in(p11);
    }
    pthread_mutex_unlock(&p11->login_lock);
    return result;
}
