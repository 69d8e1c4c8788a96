/* SPDX-License-Identifier: Apache-2.0 */
/* Who can call the front, and how that changes with a new configuration. */
#include "front.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

/* Goes through all of them: the time does not tell a caller whether there is such an identity. */
kh_identity *kh_identity_by_name(kh_front *front, const uint8_t *name, size_t len)
{
    kh_identity *found = NULL;

    for (kh_identity *identity = front->identities; identity != NULL; identity = identity->next) {
        if (strlen(identity->name) == len && memcmp(identity->name, name, len) == 0) {
            found = identity;
        }
    }
    return found;
}

kh_identity *kh_identity_by_uid(kh_front *front, uid_t uid)
{
    if (uid == 0 || uid == front->boot.operator_uid) {
        return &front->root;
    }
    for (kh_identity *identity = front->identities; identity != NULL; identity = identity->next) {
        if (identity->config != NULL && identity->config->uid == (int64_t)uid) {
            return identity;
        }
    }
    return NULL;
}

const kh_config_identity *kh_identity_rights(const kh_identity *identity)
{
    static const kh_config_identity nothing;

    if (identity->is_root) {
        return NULL;
    }
    return identity->config != NULL ? identity->config : &nothing;
}

static void set_limits(kh_front *front, kh_identity *identity)
{
    const kh_config_identity *config = identity->config;

    identity->tenant.queue_max =
        config != NULL && config->queue_max > 0 ? config->queue_max : (uint32_t)front->config->queue_max;
    identity->tenant.weight = config != NULL ? config->weight : 1;
}

static bool same_secret(const kh_credential *a, const kh_credential *b)
{
    return a != NULL && b != NULL && CRYPTO_memcmp(a->secret, b->secret, sizeof a->secret) == 0;
}

kh_result kh_identities_apply(kh_front *front)
{
    for (kh_identity *identity = front->identities; identity != NULL; identity = identity->next) {
        identity->config = NULL;
        identity->old_credential = identity->credential;
        identity->credential = NULL;
    }
    for (size_t i = 0; i < front->config->identity_count; i++) {
        const kh_config_identity *config = &front->config->identities[i];
        kh_identity *identity =
            kh_identity_by_name(front, (const uint8_t *)config->name, strlen(config->name));

        if (identity == NULL) {
            identity = calloc(1, sizeof *identity);
            if (identity == NULL) {
                return KH_E_MEMORY;
            }
            memcpy(identity->name, config->name, sizeof identity->name);
            identity->next = front->identities;
            front->identities = identity;
        }
        identity->config = config;
        identity->credential = config->token != NULL ? &front->credentials[i] : NULL;
        set_limits(front, identity);
    }
    for (kh_identity *identity = front->identities; identity != NULL; identity = identity->next) {
        identity->same_token = same_secret(identity->old_credential, identity->credential);
        identity->old_credential = NULL; /* the caller wipes it */
    }
    memcpy(front->root.name, "root", sizeof "root");
    front->root.is_root = true;
    set_limits(front, &front->root);
    return KH_OK;
}
