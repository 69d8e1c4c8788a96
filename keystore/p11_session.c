/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions with a token: one for each thread that works, made anew when the token lost them. */
#include "p11_internal.h"

#include <stdlib.h>
#include <string.h>

static kh_result open_session(kh_p11_session *session)
{
    CK_FLAGS flags = CKF_SERIAL_SESSION | (session->read_write ? CKF_RW_SESSION : 0);
    kh_result result =
        kh_p11_check(session, "C_OpenSession",
                     session->p11->f->C_OpenSession(session->p11->slot, flags, NULL, NULL, &session->handle));

    session->open = result == KH_OK;
    return result;
}

kh_result kh_p11_session_new(kh_p11 *p11, bool read_write, kh_p11_session **out)
{
    kh_p11_session *session = calloc(1, sizeof(*session));
    kh_result result = KH_E_MEMORY;

    *out = NULL;
    if (session == NULL) {
        return result;
    }
    session->p11 = p11;
    session->read_write = read_write;
    result = open_session(session);
    if (result != KH_OK) {
        kh_p11_log(p11, KH_LOG_DEBUG, "%s", session->error);
        kh_p11_session_free(session);
        return result;
    }
    *out = session;
    return KH_OK;
}

kh_result kh_p11_session_renew(kh_p11_session *session)
{
    kh_p11 *p11 = session->p11;
    bool logged_in = false;
    kh_result result = KH_OK;

    if (session->open) {
        p11->f->C_CloseSession(session->handle); /* it may be dead already: no matter */
        session->open = false;
    }
    result = open_session(session);
    if (result != KH_OK) {
        return result;
    }
    /* A token that lost its sessions has lost the login with them. */
    pthread_mutex_lock(&p11->login_lock);
    logged_in = p11->login_holds;
    pthread_mutex_unlock(&p11->login_lock);
    if (logged_in) {
        result = kh_p11_login(p11);
    }
    if (result != KH_OK) {
        /* Of the PIN the caller hears by logging in again, which does not try it again. */
        bool pin = result == KH_E_PASSPHRASE || result == KH_E_LOCKED;

        return kh_p11_refuse(session, result, pin ? KH_HEAL_LOGIN : KH_HEAL_TOKEN,
                             "the login was lost and cannot be made again: %s", kh_result_text((int)result));
    }
    return KH_OK;
}

void kh_p11_session_free(kh_p11_session *session)
{
    if (session == NULL) {
        return;
    }
    if (session->open) {
        session->p11->f->C_CloseSession(session->handle);
    }
    free(session);
}

static bool same_field(const unsigned char *field, size_t len, const char *text)
{
    char got[KH_P11_FIELD_MAX + 1];

    kh_p11_unpad(field, len, got);
    return strcmp(got, text) == 0;
}

kh_result kh_p11_alive(kh_p11_session *session)
{
    kh_p11 *p11 = session->p11;
    CK_SESSION_INFO state;
    CK_TOKEN_INFO token;
    bool logged_in = false;
    kh_result result = kh_p11_check(session, "C_GetTokenInfo", p11->f->C_GetTokenInfo(p11->slot, &token));

    if (result != KH_OK) {
        session->heal = KH_HEAL_TOKEN; /* whatever it says: a new session does not bring a token back
                                          (SoftHSM: GENERAL_ERROR) */
        return KH_E_UNAVAILABLE;
    }
    /* The slot may have another token by now. */
    if ((token.flags & CKF_TOKEN_INITIALIZED) == 0 ||
        !same_field(token.label, sizeof(token.label), p11->label) ||
        !same_field(token.serialNumber, sizeof(token.serialNumber), p11->serial)) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_TOKEN, "the slot has another token now");
    }
    result = kh_p11_check(session, "C_GetSessionInfo", p11->f->C_GetSessionInfo(session->handle, &state));
    if (result != KH_OK) {
        return result;
    }
    pthread_mutex_lock(&p11->login_lock);
    logged_in = p11->login_holds;
    pthread_mutex_unlock(&p11->login_lock);
    if (logged_in && state.state != CKS_RO_USER_FUNCTIONS && state.state != CKS_RW_USER_FUNCTIONS) {
        return kh_p11_refuse(session, KH_E_UNAVAILABLE, KH_HEAL_LOGIN, "the token has logged us out");
    }
    return KH_OK;
}
