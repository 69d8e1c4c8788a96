/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PKCS#11 module that passes everything on to a real one and misbehaves on order (README.md). It exports
 * C_GetFunctionList only. Lost sessions and handles are a matter of numbers: each carries the epoch it was
 * made in, and the real ones live on.
 */
#include "shim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SESSIONS_MAX 4096
#define EPOCH_SHIFT 40 /* of an object handle; the real ones are small */
#define SCRATCH_MAX 8192

typedef struct session {
    CK_SESSION_HANDLE handle; /* 0: free */
    unsigned long epoch;
    char label[SHIM_LABEL_MAX]; /* of the key of the operation that was begun last */
} session;

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST list;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* sessions and login_epoch */
static session sessions[SESSIONS_MAX];
static size_t sessions_used;                     /* those behind are free */
static unsigned long login_epoch, login_logouts; /* of the login that holds */
static bool logged_in;

/* ---- Sessions, by epoch ---- */

static session *find(CK_SESSION_HANDLE handle)
{
    for (size_t i = 0; i < sessions_used; i++) {
        if (sessions[i].handle == handle) {
            return &sessions[i];
        }
    }
    return NULL;
}

static void opened(CK_SESSION_HANDLE handle, unsigned long epoch)
{
    session *free_one = NULL;

    pthread_mutex_lock(&lock);
    free_one = find(0);
    if (free_one == NULL && sessions_used < SESSIONS_MAX) {
        free_one = &sessions[sessions_used++];
    }
    if (free_one != NULL) {
        *free_one = (session){.handle = handle, .epoch = epoch};
    }
    pthread_mutex_unlock(&lock);
}

static void closed(CK_SESSION_HANDLE handle)
{
    session *it = NULL;

    pthread_mutex_lock(&lock);
    it = find(handle);
    if (it != NULL) {
        it->handle = 0;
    }
    pthread_mutex_unlock(&lock);
}

/* CKR_OK: the token is there, the session alive and, where it matters, somebody logged in. */
static CK_RV state(CK_SESSION_HANDLE handle, bool needs_login)
{
    const session *it = NULL;
    unsigned long epoch = 0;
    CK_RV rv = CKR_OK;

    if (shim_token_gone()) {
        return CKR_DEVICE_REMOVED;
    }
    epoch = shim_epoch();
    pthread_mutex_lock(&lock);
    it = find(handle);
    if (it != NULL && it->epoch != epoch) {
        rv = CKR_SESSION_HANDLE_INVALID;
    } else if (needs_login && logged_in && (login_epoch != epoch || login_logouts != shim_logouts())) {
        rv = CKR_USER_NOT_LOGGED_IN;
    }
    pthread_mutex_unlock(&lock);
    return rv;
}

/* ---- Handles, by epoch ---- */

static CK_OBJECT_HANDLE outward(CK_OBJECT_HANDLE handle)
{
    return handle + (shim_epoch() << EPOCH_SHIFT);
}

static bool inward(CK_OBJECT_HANDLE *handle)
{
    if (*handle >> EPOCH_SHIFT != shim_epoch()) {
        return false;
    }
    *handle &= (1UL << EPOCH_SHIFT) - 1;
    return true;
}

/* Notes the key's label for rules that ask for it. */
static void note_label(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE key)
{
    char label[SHIM_LABEL_MAX] = "";
    CK_ATTRIBUTE attribute = {.type = CKA_LABEL, .pValue = label, .ulValueLen = sizeof(label) - 1};
    session *it = NULL;

    if (!shim_wants_labels()) {
        return;
    }
    if (real->C_GetAttributeValue(handle, key, &attribute, 1) != CKR_OK) {
        label[0] = '\0';
    }
    pthread_mutex_lock(&lock);
    it = find(handle);
    if (it != NULL) {
        memcpy(it->label, label, sizeof(label));
    }
    pthread_mutex_unlock(&lock);
}

static void get_label(CK_SESSION_HANDLE handle, char label[SHIM_LABEL_MAX])
{
    const session *it = NULL;

    pthread_mutex_lock(&lock);
    it = find(handle);
    memcpy(label, it != NULL ? it->label : "", it != NULL ? SHIM_LABEL_MAX : 1);
    pthread_mutex_unlock(&lock);
}

/* ---- Calls without a session ---- */

/* The body of a call: what the rules say, what stands in its way, the call itself. */
#define CALL(name, label, obstacle, call)                                                                    \
    do {                                                                                                     \
        shim_action action = shim_before(name, label);                                                       \
        CK_RV rv = action.rv != CKR_OK ? action.rv : (obstacle);                                             \
                                                                                                             \
        if (rv == CKR_OK) {                                                                                  \
            rv = (call);                                                                                     \
        }                                                                                                    \
        shim_after(&action, name, rv);                                                                       \
        return rv;                                                                                           \
    } while (0)

static CK_RV initialize(void *args)
{
    CK_C_INITIALIZE_ARGS with_reserved =
        args != NULL ? *(CK_C_INITIALIZE_ARGS *)args : (CK_C_INITIALIZE_ARGS){0};
    char *reserved = getenv("KH_SHIM_RESERVED");

    if (reserved != NULL) {
        with_reserved.pReserved = reserved;
        args = &with_reserved;
    }
    CALL("C_Initialize", "", CKR_OK, real->C_Initialize(args));
}

static CK_RV finalize_real(void *reserved)
{
    CK_RV rv = real->C_Finalize(reserved);

    pthread_mutex_lock(&lock);
    sessions_used = 0;
    logged_in = false;
    pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV finalize(void *reserved)
{
    CALL("C_Finalize", "", CKR_OK, finalize_real(reserved));
}

static CK_RV get_slots(unsigned char present, CK_SLOT_ID *slots, CK_ULONG *count)
{
    if (shim_token_gone() && present) {
        *count = 0;
        return CKR_OK;
    }
    CALL("C_GetSlotList", "", CKR_OK, real->C_GetSlotList(present, slots, count));
}

static CK_RV get_token(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CALL("C_GetTokenInfo", "", shim_token_gone() ? CKR_TOKEN_NOT_PRESENT : CKR_OK,
         real->C_GetTokenInfo(slot, info));
}

static CK_RV get_mechanism(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info)
{
    CALL("C_GetMechanismInfo", "", shim_hides(type) ? CKR_MECHANISM_INVALID : CKR_OK,
         real->C_GetMechanismInfo(slot, type, info));
}

static CK_RV open_real(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                       CK_SESSION_HANDLE *handle)
{
    unsigned long epoch = shim_epoch();
    CK_RV rv = real->C_OpenSession(slot, flags, application, notify, handle);

    if (rv == CKR_OK) {
        opened(*handle, epoch);
    }
    return rv;
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE *handle)
{
    CALL("C_OpenSession", "", shim_token_gone() ? CKR_TOKEN_NOT_PRESENT : CKR_OK,
         open_real(slot, flags, application, notify, handle));
}

/* A lost session is closed as well: what its owner gives up does not pile up in the real module. */
static CK_RV close_real(CK_SESSION_HANDLE handle)
{
    CK_RV obstacle = state(handle, false), rv = real->C_CloseSession(handle);

    closed(handle);
    return obstacle != CKR_OK ? obstacle : rv;
}

static CK_RV close_session(CK_SESSION_HANDLE handle)
{
    CALL("C_CloseSession", "", CKR_OK, close_real(handle));
}

/* ---- Logging in ---- */

/* The real login may have outlived the epoch: then the PIN is as good as it was. */
static CK_RV login_real(CK_SESSION_HANDLE handle, CK_USER_TYPE user, unsigned char *pin, CK_ULONG len)
{
    CK_RV rv = real->C_Login(handle, user, pin, len);
    unsigned long epoch = shim_epoch();

    pthread_mutex_lock(&lock);
    if (rv == CKR_USER_ALREADY_LOGGED_IN && (login_epoch != epoch || login_logouts != shim_logouts())) {
        rv = CKR_OK;
    }
    if (rv == CKR_OK) {
        logged_in = true;
        login_epoch = epoch;
        login_logouts = shim_logouts();
    }
    pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, unsigned char *pin, CK_ULONG len)
{
    CALL("C_Login", "", state(handle, false), login_real(handle, user, pin, len));
}

static CK_RV session_info_real(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info)
{
    CK_RV rv = real->C_GetSessionInfo(handle, info);

    if (rv == CKR_OK && state(handle, true) == CKR_USER_NOT_LOGGED_IN) {
        info->state = info->state == CKS_RW_USER_FUNCTIONS ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
    }
    return rv;
}

static CK_RV get_session_info(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info)
{
    CALL("C_GetSessionInfo", "", state(handle, false), session_info_real(handle, info));
}

/* ---- Objects ---- */

static CK_RV returned(CK_RV rv, CK_OBJECT_HANDLE *object)
{
    if (rv == CKR_OK && object != NULL) {
        *object = outward(*object);
    }
    return rv;
}

static CK_RV create_object(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *template, CK_ULONG count,
                           CK_OBJECT_HANDLE *object)
{
    CALL("C_CreateObject", "", state(handle, true),
         returned(real->C_CreateObject(handle, template, count, object), object));
}

static CK_RV destroy_object(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object)
{
    CALL("C_DestroyObject", "", state(handle, true),
         inward(&object) ? real->C_DestroyObject(handle, object) : CKR_OBJECT_HANDLE_INVALID);
}

static CK_RV get_attributes(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template,
                            CK_ULONG count)
{
    shim_action action = shim_before("C_GetAttributeValue", "");
    CK_RV rv = action.rv != CKR_OK ? action.rv : state(handle, false);

    if (rv == CKR_OK) {
        rv = inward(&object) ? real->C_GetAttributeValue(handle, object, template, count)
                             : CKR_OBJECT_HANDLE_INVALID;
    }
    if (rv == CKR_OK && count > 0 && template[0].pValue != NULL) {
        template[0].ulValueLen += (CK_ULONG)action.length;
    }
    shim_after(&action, "C_GetAttributeValue", rv);
    return rv;
}

static CK_RV set_attributes(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template,
                            CK_ULONG count)
{
    CALL("C_SetAttributeValue", "", state(handle, true),
         inward(&object) ? real->C_SetAttributeValue(handle, object, template, count)
                         : CKR_OBJECT_HANDLE_INVALID);
}

static CK_RV find_init(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *template, CK_ULONG count)
{
    CALL("C_FindObjectsInit", "", state(handle, false), real->C_FindObjectsInit(handle, template, count));
}

/* Who is not logged in sees no private objects. */
static CK_RV find_real(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count)
{
    CK_RV rv = real->C_FindObjects(handle, objects, max, count);

    if (rv == CKR_OK && state(handle, true) != CKR_OK) {
        *count = 0;
    }
    for (CK_ULONG i = 0; rv == CKR_OK && i < *count; i++) {
        objects[i] = outward(objects[i]);
    }
    return rv;
}

static CK_RV find_objects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count)
{
    CALL("C_FindObjects", "", state(handle, false), find_real(handle, objects, max, count));
}

static CK_RV find_final(CK_SESSION_HANDLE handle)
{
    CALL("C_FindObjectsFinal", "", state(handle, false), real->C_FindObjectsFinal(handle));
}

/* ---- Operations with a key ---- */

typedef CK_RV (*init_fn)(CK_SESSION_HANDLE, CK_MECHANISM *, CK_OBJECT_HANDLE);
typedef CK_RV (*work_fn)(CK_SESSION_HANDLE, unsigned char *, CK_ULONG, unsigned char *, CK_ULONG *);

static CK_RV begin(const char *name, init_fn init, CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism,
                   CK_OBJECT_HANDLE key)
{
    char label[SHIM_LABEL_MAX] = "";
    CK_RV obstacle = state(handle, true);
    bool good = inward(&key);

    if (obstacle == CKR_OK && good) {
        note_label(handle, key);
        get_label(handle, label);
    }
    CALL(name, label, obstacle, good ? init(handle, mechanism, key) : CKR_KEY_HANDLE_INVALID);
}

/* Ends the operation that was begun: one that fails is over, as the standard has it. */
static void discard(work_fn work, CK_SESSION_HANDLE handle, unsigned char *data, CK_ULONG len)
{
    unsigned char scratch[SCRATCH_MAX];
    CK_ULONG scratch_len = sizeof(scratch);

    work(handle, data, len, scratch, &scratch_len);
}

static CK_RV operate(const char *name, work_fn work, CK_SESSION_HANDLE handle, unsigned char *data,
                     CK_ULONG len, unsigned char *out, CK_ULONG *out_len)
{
    char label[SHIM_LABEL_MAX] = "";
    CK_RV rv = CKR_OK;
    shim_action action;

    if (out == NULL) { /* a length query */
        return work(handle, data, len, out, out_len);
    }
    get_label(handle, label);
    action = shim_before(name, label);
    rv = action.rv != CKR_OK ? action.rv : state(handle, true);
    if (rv == CKR_OK) {
        rv = work(handle, data, len, out, out_len);
    } else {
        discard(work, handle, data, len);
    }
    if (rv == CKR_OK) {
        *out_len += (CK_ULONG)action.length;
    }
    shim_after(&action, name, rv);
    return rv;
}

#define OPERATION(verb, lower)                                                                               \
    static CK_RV lower##_init(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)       \
    {                                                                                                        \
        return begin("C_" #verb "Init", real->C_##verb##Init, handle, mechanism, key);                       \
    }                                                                                                        \
    static CK_RV lower(CK_SESSION_HANDLE handle, unsigned char *data, CK_ULONG len, unsigned char *out,      \
                       CK_ULONG *out_len)                                                                    \
    {                                                                                                        \
        return operate("C_" #verb, real->C_##verb, handle, data, len, out, out_len);                         \
    }

OPERATION(Sign, do_sign)
OPERATION(Decrypt, do_decrypt)
OPERATION(Encrypt, do_encrypt)

/* ---- Making keys ---- */

static CK_RV generate_key(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_ATTRIBUTE *template,
                          CK_ULONG count, CK_OBJECT_HANDLE *key)
{
    CALL("C_GenerateKey", "", state(handle, true),
         returned(real->C_GenerateKey(handle, mechanism, template, count, key), key));
}

static CK_RV generate_pair(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_,
                           CK_ULONG public_count, CK_ATTRIBUTE *private_, CK_ULONG private_count,
                           CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
    CALL("C_GenerateKeyPair", "", state(handle, true),
         returned(returned(real->C_GenerateKeyPair(handle, mechanism, public_, public_count, private_,
                                                   private_count, public_key, private_key),
                           public_key),
                  private_key));
}

static CK_RV wrap_key(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,
                      CK_OBJECT_HANDLE key, unsigned char *out, CK_ULONG *out_len)
{
    shim_action action = {0};
    CK_RV rv = CKR_OK;

    if (out != NULL) {
        action = shim_before("C_WrapKey", "");
        rv = action.rv != CKR_OK ? action.rv : state(handle, true);
    }
    if (rv == CKR_OK) {
        rv = inward(&wrapping) && inward(&key)
                 ? real->C_WrapKey(handle, mechanism, wrapping, key, out, out_len)
                 : CKR_KEY_HANDLE_INVALID;
    }
    if (rv == CKR_OK) {
        *out_len += (CK_ULONG)action.length;
    }
    shim_after(&action, "C_WrapKey", rv);
    return rv;
}

static CK_RV unwrap_key(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,
                        unsigned char *blob, CK_ULONG len, CK_ATTRIBUTE *template, CK_ULONG count,
                        CK_OBJECT_HANDLE *key)
{
    CALL("C_UnwrapKey", "", state(handle, true),
         inward(&wrapping)
             ? returned(real->C_UnwrapKey(handle, mechanism, wrapping, blob, len, template, count, key), key)
             : CKR_UNWRAPPING_KEY_HANDLE_INVALID);
}

/* ---- The module ---- */

static void load(void)
{
    const char *path = getenv("KH_SHIM_MODULE");
    void *library = dlopen(path != NULL ? path : "/usr/lib/softhsm/libsofthsm2.so",
                           RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    CK_C_GetFunctionList get = NULL;

    if (library != NULL) {
        *(void **)&get = dlsym(library, "C_GetFunctionList");
    }
    if (get == NULL || get(&real) != CKR_OK) {
        fprintf(stderr, "libkeyhold-misbehave: no real module: %s\n", dlerror());
        return;
    }
    list = *real;
    list.C_Initialize = initialize;
    list.C_Finalize = finalize;
    list.C_GetSlotList = get_slots;
    list.C_GetTokenInfo = get_token;
    list.C_GetMechanismInfo = get_mechanism;
    list.C_OpenSession = open_session;
    list.C_CloseSession = close_session;
    list.C_GetSessionInfo = get_session_info;
    list.C_Login = login;
    list.C_CreateObject = create_object;
    list.C_DestroyObject = destroy_object;
    list.C_GetAttributeValue = get_attributes;
    list.C_SetAttributeValue = set_attributes;
    list.C_FindObjectsInit = find_init;
    list.C_FindObjects = find_objects;
    list.C_FindObjectsFinal = find_final;
    list.C_SignInit = do_sign_init;
    list.C_Sign = do_sign;
    list.C_DecryptInit = do_decrypt_init;
    list.C_Decrypt = do_decrypt;
    list.C_EncryptInit = do_encrypt_init;
    list.C_Encrypt = do_encrypt;
    list.C_GenerateKey = generate_key;
    list.C_GenerateKeyPair = generate_pair;
    list.C_WrapKey = wrap_key;
    list.C_UnwrapKey = unwrap_key;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, load);
    if (real == NULL) {
        return CKR_LIBRARY_LOAD_FAILED;
    }
    list.C_GetFunctionList = C_GetFunctionList;
    *out = &list;
    return CKR_OK;
}
