/* SPDX-License-Identifier: Apache-2.0 */
/* What each CKR_ of PKCS#11 means for the peer and for the keeper. */
#include "p11_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * GENERAL_ERROR, FUNCTION_FAILED and DEVICE_ERROR are what libraries say of anything: the session is made
 * anew, and a pool asks another partition. Handles that are invalid may be those of objects of a session that
 * was lost.
 */
#define KH_MEANINGS(X)                                                                                       \
    X(CKR_OK, KH_OK, KH_HEAL_NONE)                                                                           \
    X(CKR_CANCEL, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                                         \
    X(CKR_HOST_MEMORY, KH_E_MEMORY, KH_HEAL_NONE)                                                            \
    X(CKR_SLOT_ID_INVALID, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                                  \
    X(CKR_GENERAL_ERROR, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                                  \
    X(CKR_FUNCTION_FAILED, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                                \
    X(CKR_ARGUMENTS_BAD, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                     \
    X(CKR_NEED_TO_CREATE_THREADS, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                            \
    X(CKR_CANT_LOCK, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                         \
    X(CKR_ATTRIBUTE_READ_ONLY, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                               \
    X(CKR_ATTRIBUTE_SENSITIVE, KH_E_FORBIDDEN, KH_HEAL_NONE)                                                 \
    X(CKR_ATTRIBUTE_TYPE_INVALID, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                            \
    X(CKR_ATTRIBUTE_VALUE_INVALID, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                           \
    X(CKR_ACTION_PROHIBITED, KH_E_FORBIDDEN, KH_HEAL_NONE)                                                   \
    X(CKR_DATA_INVALID, KH_E_INVALID, KH_HEAL_NONE)                                                          \
    X(CKR_DATA_LEN_RANGE, KH_E_INVALID, KH_HEAL_NONE)                                                        \
    X(CKR_DEVICE_ERROR, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                                   \
    X(CKR_DEVICE_MEMORY, KH_E_STORAGE, KH_HEAL_NONE)                                                         \
    X(CKR_DEVICE_REMOVED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                                   \
    X(CKR_ENCRYPTED_DATA_INVALID, KH_E_DAMAGED, KH_HEAL_NONE)                                                \
    X(CKR_ENCRYPTED_DATA_LEN_RANGE, KH_E_DAMAGED, KH_HEAL_NONE)                                              \
    X(CKR_FUNCTION_CANCELED, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                              \
    X(CKR_FUNCTION_NOT_PARALLEL, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                          \
    X(CKR_FUNCTION_NOT_SUPPORTED, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                            \
    X(CKR_KEY_HANDLE_INVALID, KH_E_UNAVAILABLE, KH_HEAL_OBJECT)                                              \
    X(CKR_KEY_SIZE_RANGE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                    \
    X(CKR_KEY_TYPE_INCONSISTENT, KH_E_SCHEME, KH_HEAL_NONE)                                                  \
    X(CKR_KEY_NOT_NEEDED, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                    \
    X(CKR_KEY_CHANGED, KH_E_UNAVAILABLE, KH_HEAL_OBJECT)                                                     \
    X(CKR_KEY_NEEDED, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                        \
    X(CKR_KEY_INDIGESTIBLE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                  \
    X(CKR_KEY_FUNCTION_NOT_PERMITTED, KH_E_USAGE, KH_HEAL_NONE)                                              \
    X(CKR_KEY_NOT_WRAPPABLE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                 \
    X(CKR_KEY_UNEXTRACTABLE, KH_E_FORBIDDEN, KH_HEAL_NONE)                                                   \
    X(CKR_MECHANISM_INVALID, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                 \
    X(CKR_MECHANISM_PARAM_INVALID, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                           \
    X(CKR_OBJECT_HANDLE_INVALID, KH_E_UNAVAILABLE, KH_HEAL_OBJECT)                                           \
    X(CKR_OPERATION_ACTIVE, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                               \
    X(CKR_OPERATION_NOT_INITIALIZED, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                      \
    X(CKR_PIN_INCORRECT, KH_E_PASSPHRASE, KH_HEAL_NONE)                                                      \
    X(CKR_PIN_INVALID, KH_E_PASSPHRASE, KH_HEAL_NONE)                                                        \
    X(CKR_PIN_LEN_RANGE, KH_E_PASSPHRASE, KH_HEAL_NONE)                                                      \
    X(CKR_PIN_EXPIRED, KH_E_LOCKED, KH_HEAL_NONE)                                                            \
    X(CKR_PIN_LOCKED, KH_E_LOCKED, KH_HEAL_NONE)                                                             \
    X(CKR_SESSION_CLOSED, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                                 \
    X(CKR_SESSION_COUNT, KH_E_OVERLOADED, KH_HEAL_NONE)                                                      \
    X(CKR_SESSION_HANDLE_INVALID, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                         \
    X(CKR_SESSION_READ_ONLY, KH_E_ORDER, KH_HEAL_NONE)                                                       \
    X(CKR_SESSION_READ_ONLY_EXISTS, KH_E_ORDER, KH_HEAL_NONE)                                                \
    X(CKR_SESSION_READ_WRITE_SO_EXISTS, KH_E_LOCKED, KH_HEAL_NONE)                                           \
    X(CKR_TEMPLATE_INCOMPLETE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                               \
    X(CKR_TEMPLATE_INCONSISTENT, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                             \
    X(CKR_TOKEN_NOT_PRESENT, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                                \
    X(CKR_TOKEN_NOT_RECOGNIZED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                             \
    X(CKR_TOKEN_WRITE_PROTECTED, KH_E_FORBIDDEN, KH_HEAL_NONE)                                               \
    X(CKR_UNWRAPPING_KEY_HANDLE_INVALID, KH_E_UNAVAILABLE, KH_HEAL_OBJECT)                                   \
    X(CKR_UNWRAPPING_KEY_SIZE_RANGE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                         \
    X(CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                  \
    X(CKR_USER_ALREADY_LOGGED_IN, KH_OK, KH_HEAL_NONE)                                                       \
    X(CKR_USER_NOT_LOGGED_IN, KH_E_UNAVAILABLE, KH_HEAL_LOGIN)                                               \
    X(CKR_USER_PIN_NOT_INITIALIZED, KH_E_LOCKED, KH_HEAL_NONE)                                               \
    X(CKR_USER_ANOTHER_ALREADY_LOGGED_IN, KH_E_LOCKED, KH_HEAL_NONE)                                         \
    X(CKR_USER_TOO_MANY_TYPES, KH_E_LOCKED, KH_HEAL_NONE)                                                    \
    X(CKR_WRAPPED_KEY_INVALID, KH_E_DAMAGED, KH_HEAL_NONE)                                                   \
    X(CKR_WRAPPED_KEY_LEN_RANGE, KH_E_DAMAGED, KH_HEAL_NONE)                                                 \
    X(CKR_WRAPPING_KEY_HANDLE_INVALID, KH_E_UNAVAILABLE, KH_HEAL_OBJECT)                                     \
    X(CKR_WRAPPING_KEY_SIZE_RANGE, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                           \
    X(CKR_WRAPPING_KEY_TYPE_INCONSISTENT, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                    \
    X(CKR_RANDOM_NO_RNG, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                                     \
    X(CKR_DOMAIN_PARAMS_INVALID, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                             \
    X(CKR_CURVE_NOT_SUPPORTED, KH_E_UNSUPPORTED, KH_HEAL_NONE)                                               \
    X(CKR_BUFFER_TOO_SMALL, KH_E_UNAVAILABLE, KH_HEAL_SESSION)                                               \
    X(CKR_CRYPTOKI_NOT_INITIALIZED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                         \
    X(CKR_MUTEX_BAD, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                                        \
    X(CKR_MUTEX_NOT_LOCKED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                                 \
    X(CKR_FIPS_SELF_TEST_FAILED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                            \
    X(CKR_LIBRARY_LOAD_FAILED, KH_E_UNAVAILABLE, KH_HEAL_TOKEN)                                              \
    X(CKR_PUBLIC_KEY_INVALID, KH_E_INVALID, KH_HEAL_NONE)                                                    \
    X(CKR_FUNCTION_REJECTED, KH_E_FORBIDDEN, KH_HEAL_NONE)

static const kh_p11_meaning meanings[] = {
#define KH_X(rv, result, heal) {rv, #rv, result, heal},
    KH_MEANINGS(KH_X)
#undef KH_X
};

static const kh_p11_meaning unknown = {0, NULL, KH_E_UNAVAILABLE, KH_HEAL_SESSION};

const kh_p11_meaning *kh_p11_meaning_of(CK_RV rv)
{
    for (size_t i = 0; i < sizeof(meanings) / sizeof(meanings[0]); i++) {
        if (meanings[i].rv == rv) {
            return &meanings[i];
        }
    }
    return &unknown;
}

/*
 * A handle that is invalid again although the key was found anew: the library looks at a token that is no
 * longer there (SoftHSM does when its directory was replaced), and only a new process sees the new one.
 */
static kh_p11_heal heal_of(kh_p11_session *session, kh_p11_heal heal)
{
    if (heal == KH_HEAL_OBJECT) {
        heal = session->object_lost ? KH_HEAL_TOKEN : KH_HEAL_OBJECT;
        session->object_lost = true;
    }
    return heal;
}

kh_result kh_p11_check(kh_p11_session *session, const char *function, CK_RV rv)
{
    const kh_p11_meaning *meaning = NULL;

    if (rv == CKR_OK) {
        session->heal = KH_HEAL_NONE;
        session->error[0] = '\0';
        return KH_OK;
    }
    meaning = kh_p11_meaning_of(rv);
    session->heal = heal_of(session, meaning->heal);
    if (meaning->name != NULL) {
        snprintf(session->error, sizeof(session->error), "%s: %s", function, meaning->name);
    } else {
        snprintf(session->error, sizeof(session->error), "%s: CKR 0x%lx", function, (unsigned long)rv);
    }
    return meaning->result;
}

kh_result kh_p11_refuse(kh_p11_session *session, kh_result result, kh_p11_heal heal, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(session->error, sizeof(session->error), format, args);
    va_end(args);
    session->heal = heal;
    return result;
}

/* A keeper that waits for its token opens it four times a second: an error is said once until something else
 * is. */
static pthread_mutex_t said_lock = PTHREAD_MUTEX_INITIALIZER;
static char said[512];

static bool said_before(const char *text)
{
    bool before = false;

    pthread_mutex_lock(&said_lock);
    before = strcmp(said, text) == 0;
    snprintf(said, sizeof(said), "%s", text);
    pthread_mutex_unlock(&said_lock);
    return before;
}

void kh_p11_log(const kh_p11 *p11, kh_log_level level, const char *format, ...)
{
    char text[512];
    va_list args;

    if (p11->log == NULL) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (level == KH_LOG_ERROR && said_before(text)) {
        level = KH_LOG_DEBUG;
    }
    p11->log(p11->log_ctx, level, text);
}

void kh_p11_log_anew(void)
{
    (void)said_before("");
}

kh_p11_heal kh_p11_session_heal(const kh_p11_session *session)
{
    return session->heal;
}

const char *kh_p11_session_error(const kh_p11_session *session)
{
    return session->error;
}
