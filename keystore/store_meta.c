/* SPDX-License-Identifier: Apache-2.0 */
/* The table meta: the keys of keys, and what the store knows of itself. */
#include "process.h"
#include "store_sql.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#define SEALED_KEY_LEN (KH_SEAL_KEY_LEN + KH_SEAL_OVERHEAD)
#define LAST_BACKUP "last backup"

/* A checksum without a secret, only so that damage is not mistaken for a wrong passphrase. */
static void meta_sum(const char *key, const uint8_t *value, size_t len, uint8_t sum[32])
{
    uint8_t text[256];
    size_t key_len = strlen(key);

    memcpy(text, key, key_len);
    memcpy(text + key_len, value, len);
    SHA256(text, key_len + len, sum);
}

kh_result kh_meta_write(kh_store *store, const char *key, const uint8_t *value, size_t len)
{
    sqlite3_stmt *statement = NULL;
    uint8_t sum[32];
    int code = sqlite3_prepare_v2(
        store->db, "INSERT OR REPLACE INTO meta (key, value, sum) VALUES (?1, ?2, ?3)", -1, &statement, NULL);

    meta_sum(key, value, len, sum);
    if (code == SQLITE_OK) {
        sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
        sqlite3_bind_blob(statement, 2, value, (int)len, SQLITE_STATIC);
        sqlite3_bind_blob(statement, 3, sum, sizeof(sum), SQLITE_STATIC);
        code = sqlite3_step(statement);
    }
    sqlite3_finalize(statement);
    return kh_store_error(store, code, "writing meta");
}

/* KH_E_NOT_FOUND: there is none. */
static kh_result meta_find(kh_store *store, const char *key, uint8_t *value, size_t len)
{
    sqlite3_stmt *statement = NULL;
    uint8_t sum[32];
    int code =
        sqlite3_prepare_v2(store->db, "SELECT value, sum FROM meta WHERE key = ?1", -1, &statement, NULL);
    kh_result result = KH_OK;

    if (code == SQLITE_OK) {
        sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
        code = sqlite3_step(statement);
    }
    result = kh_store_error(store, code, "reading meta");
    if (result == KH_OK && code != SQLITE_ROW) {
        result = KH_E_NOT_FOUND;
    } else if (result == KH_OK && ((size_t)sqlite3_column_bytes(statement, 0) != len ||
                                   sqlite3_column_bytes(statement, 1) != sizeof(sum))) {
        result = KH_E_DAMAGED;
    } else if (result == KH_OK) {
        memcpy(value, sqlite3_column_blob(statement, 0), len);
        meta_sum(key, value, len, sum);
        result = memcmp(sum, sqlite3_column_blob(statement, 1), sizeof(sum)) == 0 ? KH_OK : KH_E_DAMAGED;
    }
    sqlite3_finalize(statement);
    return result;
}

kh_result kh_meta_read(kh_store *store, const char *key, uint8_t *value, size_t len)
{
    kh_result result = meta_find(store, key, value, len);

    if (result == KH_E_NOT_FOUND || result == KH_E_DAMAGED) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: its %s is %s: restore the store from a backup", key,
                result == KH_E_DAMAGED ? "damaged" : "missing");
        result = KH_E_DAMAGED;
    }
    return result;
}

/* ---- The keys of keys ---------------------------------------------------------------------------------- */

/* Associated data of the sealed store key: the kind and the parameters that lead to the KEK. */
static size_t kek_aad(uint8_t aad[64], const uint8_t kind_and_params[1 + KH_KEK_PARAMS_LEN])
{
    static const char label[] = "keyhold store key 1";

    memcpy(aad, label, sizeof(label));
    memcpy(aad + sizeof(label), kind_and_params, 1 + KH_KEK_PARAMS_LEN);
    return sizeof(label) + 1 + KH_KEK_PARAMS_LEN;
}

static const uint8_t import_aad[] = "keyhold import key 1";

static kh_result import_key_from(const uint8_t private_key[32], uint8_t public_key[32])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_private_key_ex(NULL, "X25519", NULL, private_key, 32);
    size_t len = 32;
    kh_result result =
        pkey != NULL && EVP_PKEY_get_raw_public_key(pkey, public_key, &len) == 1 ? KH_OK : KH_E_CRYPTO;

    EVP_PKEY_free(pkey);
    return result;
}

kh_result kh_meta_make_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret, size_t secret_len)
{
    uint8_t kek[KH_KEK_LEN], store_key[KH_SEAL_KEY_LEN], aad[64], sealed[SEALED_KEY_LEN],
        *params = store->kek_params;
    kh_sealer *kek_sealer = NULL;
    kh_result result = KH_OK;

    params[0] = (uint8_t)kind;
    result = kh_kek_params_new(kind, params + 1);
    if (result != KH_OK || (result = kh_kek_derive(kind, secret, secret_len, params + 1, kek)) != KH_OK) {
        goto done;
    }
    if (RAND_priv_bytes(store_key, sizeof(store_key)) != 1 ||
        RAND_priv_bytes(store->import_private, sizeof(store->import_private)) != 1) {
        result = KH_E_CRYPTO;
        goto done;
    }
    if ((result = import_key_from(store->import_private, store->import_public)) != KH_OK ||
        (result = kh_kek_transfer_key(kek, store->transfer_key)) != KH_OK ||
        (result = kh_sealer_new(kek, &kek_sealer)) != KH_OK ||
        (result = kh_sealer_new(store_key, &store->sealer)) != KH_OK ||
        (result = kh_meta_write(store, "kek", params, sizeof(store->kek_params))) != KH_OK ||
        (result = kh_seal(kek_sealer, aad, kek_aad(aad, params), store_key, sizeof(store_key), sealed)) !=
            KH_OK ||
        (result = kh_meta_write(store, "store key", sealed, sizeof(sealed))) != KH_OK ||
        (result = kh_seal(store->sealer, import_aad, sizeof(import_aad), store->import_private, 32,
                          sealed)) != KH_OK ||
        (result = kh_meta_write(store, "import key", sealed, sizeof(sealed))) != KH_OK) {
        goto done;
    }
done:
    kh_sealer_free(kek_sealer);
    OPENSSL_cleanse(kek, sizeof(kek));
    OPENSSL_cleanse(store_key, sizeof(store_key));
    return result;
}

static kh_result open_import_key(kh_store *store, uint8_t private_key[32])
{
    uint8_t sealed[SEALED_KEY_LEN];
    kh_result result = kh_meta_read(store, "import key", sealed, sizeof(sealed));

    if (result == KH_OK) {
        result =
            kh_unseal(store->sealer, import_aad, sizeof(import_aad), sealed, sizeof(sealed), private_key);
    }
    return result;
}

/*
 * The store key is sealed under the KEK, and while that is being changed under the next one, too: whichever
 * of the two the agent finds in its file opens the store.
 */
typedef struct kek_slot {
    const char *kek, *store_key;
} kek_slot;
static const kek_slot slot_now = {"kek", "store key"}, slot_next = {"next kek", "next store key"};

/* What a slot gives. Wiped by whoever has it. */
typedef struct kek_opened {
    uint8_t params[KH_KEK_RECIPE_LEN], kek[KH_KEK_LEN], store_key[KH_SEAL_KEY_LEN];
} kek_opened;

/* By opened->kek. KH_E_PASSPHRASE: another one's. */
static kh_result open_slot(kh_store *store, const kek_slot *slot, kek_opened *opened)
{
    uint8_t aad[64], sealed[SEALED_KEY_LEN];
    kh_sealer *kek_sealer = NULL;
    kh_result result = meta_find(store, slot->kek, opened->params, sizeof(opened->params));

    if (result == KH_OK) {
        result = meta_find(store, slot->store_key, sealed, sizeof(sealed));
    }
    if (result == KH_OK) {
        result = kh_sealer_new(opened->kek, &kek_sealer);
    }
    if (result == KH_OK && kh_unseal(kek_sealer, aad, kek_aad(aad, opened->params), sealed, sizeof(sealed),
                                     opened->store_key) != KH_OK) {
        result = KH_E_PASSPHRASE;
    }
    kh_sealer_free(kek_sealer);
    return result;
}

/* KH_E_PASSPHRASE: another KEK's, or of another kind. */
static kh_result open_by_secret(kh_store *store, const kek_slot *slot, kh_kek_kind kind, const uint8_t *secret,
                                size_t secret_len, kek_opened *opened)
{
    kh_result result = meta_find(store, slot->kek, opened->params, sizeof(opened->params));

    if (result == KH_OK && opened->params[0] != (uint8_t)kind) {
        result = KH_E_PASSPHRASE;
    }
    if (result == KH_OK) {
        result = kh_kek_derive(kind, secret, secret_len, opened->params + 1, opened->kek);
    }
    return result == KH_OK ? open_slot(store, slot, opened) : result;
}

/* Says why the store does not open. */
static void say_closed(kh_store *store, kh_kek_kind kind)
{
    if (store->kek_params[0] != (uint8_t)kind) {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR, "store: its key is sealed under a %s, not a %s",
                store->kek_params[0] == KH_KEK_PASSPHRASE ? "passphrase" : "key file",
                kind == KH_KEK_PASSPHRASE ? "passphrase" : "key file");
    } else {
        kh_logf(store->log, store->log_ctx, KH_LOG_ERROR,
                "store: this %s does not open it: put the right one back",
                kind == KH_KEK_PASSPHRASE ? "passphrase" : "key-encryption key (kek_file)");
    }
}

kh_result kh_meta_open_keys(kh_store *store, kh_kek_kind kind, const uint8_t *secret, size_t secret_len)
{
    kek_opened opened = {0};
    uint8_t sealed[SEALED_KEY_LEN];
    kh_result result = KH_OK;

    if ((result = kh_meta_read(store, slot_now.kek, store->kek_params, sizeof(store->kek_params))) != KH_OK ||
        (result = kh_meta_read(store, slot_now.store_key, sealed, sizeof(sealed))) != KH_OK) {
        goto done;
    }
    result = open_by_secret(store, &slot_now, kind, secret, secret_len, &opened);
    if (result == KH_E_PASSPHRASE &&
        open_by_secret(store, &slot_next, kind, secret, secret_len, &opened) == KH_OK) {
        memcpy(store->kek_params, opened.params, sizeof(opened.params));
        store->by_next = true;
        result = KH_OK;
    }
    if (result == KH_E_PASSPHRASE) {
        say_closed(store, kind);
    }
    if (result != KH_OK || (result = kh_kek_transfer_key(opened.kek, store->transfer_key)) != KH_OK ||
        (result = kh_sealer_new(opened.store_key, &store->sealer)) != KH_OK ||
        (result = open_import_key(store, store->import_private)) != KH_OK) {
        goto done;
    }
    result = import_key_from(store->import_private, store->import_public);
done:
    OPENSSL_cleanse(&opened, sizeof(opened));
    return result;
}

static kh_result write_slot(kh_store *store, const kek_slot *slot, const kek_opened *opened)
{
    uint8_t aad[64], sealed[SEALED_KEY_LEN];
    kh_sealer *kek_sealer = NULL;
    kh_result result = kh_sealer_new(opened->kek, &kek_sealer);

    if (result == KH_OK) {
        result = kh_seal(kek_sealer, aad, kek_aad(aad, opened->params), opened->store_key,
                         sizeof(opened->store_key), sealed);
    }
    if (result == KH_OK) {
        result = kh_meta_write(store, slot->kek, opened->params, sizeof(opened->params));
    }
    if (result == KH_OK) {
        result = kh_meta_write(store, slot->store_key, sealed, sizeof(sealed));
    }
    kh_sealer_free(kek_sealer);
    return result;
}

static kh_result drop_next(kh_store *store)
{
    return kh_store_execute(store, "DELETE FROM meta WHERE key IN ('next kek', 'next store key')", "ending a KEK");
}

/* What a slot has sealed is not bound to it: it goes from one to the other as it is. */
kh_result kh_meta_settle(kh_store *store)
{
    uint8_t params[KH_KEK_RECIPE_LEN], sealed[SEALED_KEY_LEN];
    kh_result result = KH_OK, ended = KH_OK;

    if (!store->by_next) {
        return KH_OK;
    }
    if ((result = meta_find(store, slot_next.kek, params, sizeof(params))) != KH_OK ||
        (result = meta_find(store, slot_next.store_key, sealed, sizeof(sealed))) != KH_OK ||
        (result = kh_store_tx_begin(store)) != KH_OK) {
        return result;
    }
    result = kh_meta_write(store, slot_now.kek, params, sizeof(params));
    if (result == KH_OK) {
        result = kh_meta_write(store, slot_now.store_key, sealed, sizeof(sealed));
    }
    if (result == KH_OK) {
        result = drop_next(store);
    }
    ended = kh_store_tx_end(store, result);
    result = result == KH_OK ? ended : result;
    if (result == KH_OK) {
        store->by_next = false;
        kh_logf(store->log, store->log_ctx, KH_LOG_NOTICE, "store: opened by its new %s; the one before opens it no more",
                params[0] == KH_KEK_PASSPHRASE ? "passphrase" : "key-encryption key");
    }
    return result;
}

/*
 * Opens whichever slot this KEK is for; *by_next: the next one. The one that opened the store must go on doing so, since the
 * agent gives it to a keeper that starts anew: if that is the next one, it is the only one first.
 */
static kh_result open_either(kh_store *store, const uint8_t kek[KH_KEK_LEN], kek_opened *opened,
                             bool *by_next)
{
    kh_result result = kh_meta_settle(store);

    memcpy(opened->kek, kek, KH_KEK_LEN);
    *by_next = false;
    if (result == KH_OK) {
        result = open_slot(store, &slot_now, opened);
    }
    if (result == KH_E_PASSPHRASE) {
        *by_next = open_slot(store, &slot_next, opened) == KH_OK;
        result = *by_next ? KH_OK : KH_E_PASSPHRASE;
    }
    return result;
}

kh_result kh_store_kek_recipes(kh_store *store, uint8_t recipes[2][KH_KEK_RECIPE_LEN], size_t *count)
{
    kh_result result = kh_meta_settle(store);

    *count = 0;
    if (result == KH_OK) {
        result = meta_find(store, slot_now.kek, recipes[0], KH_KEK_RECIPE_LEN);
    }
    if (result == KH_OK) {
        *count = meta_find(store, slot_next.kek, recipes[1], KH_KEK_RECIPE_LEN) == KH_OK ? 2 : 1;
    }
    return result;
}

kh_result kh_store_kek_next(kh_store *store, const kh_kek_change *change)
{
    kek_opened opened = {0};
    bool by_next = false;
    kh_result result = open_either(store, change->kek, &opened, &by_next), ended = KH_OK;

    if (result == KH_OK && (change->recipe[0] != opened.params[0] || !kh_kek_recipe_good(change->recipe))) {
        result = KH_E_INVALID;
    }
    if (result != KH_OK || (result = kh_store_tx_begin(store)) != KH_OK) {
        goto done;
    }
    if (by_next) { /* an earlier change was not ended: its KEK is the one in the file, and must go on opening
                      the store */
        result = write_slot(store, &slot_now, &opened);
    }
    memcpy(opened.params, change->recipe, sizeof(opened.params));
    memcpy(opened.kek, change->next, KH_KEK_LEN);
    if (result == KH_OK) {
        result = write_slot(store, &slot_next, &opened);
    }
    ended = kh_store_tx_end(store, result);
    result = result == KH_OK ? ended : result;
done:
    OPENSSL_cleanse(&opened, sizeof(opened));
    return result;
}

kh_result kh_store_kek_end(kh_store *store, const uint8_t kek[KH_KEK_LEN])
{
    kek_opened opened = {0};
    bool by_next = false;
    kh_result result = open_either(store, kek, &opened, &by_next), ended = KH_OK;

    if (result != KH_OK || (result = kh_store_tx_begin(store)) != KH_OK) {
        goto done;
    }
    result = write_slot(store, &slot_now, &opened);
    if (result == KH_OK) {
        result = drop_next(store);
    }
    ended = kh_store_tx_end(store, result);
    result = result == KH_OK ? ended : result;
    if (result == KH_OK) {
        memcpy(store->kek_params, opened.params, sizeof(opened.params));
        result = kh_kek_transfer_key(kek, store->transfer_key);
    }
done:
    OPENSSL_cleanse(&opened, sizeof(opened));
    return result;
}

kh_result kh_meta_check_import_key(kh_store *store)
{
    uint8_t private_key[32] = {0};
    kh_result result = open_import_key(store, private_key);

    if (result == KH_OK && CRYPTO_memcmp(private_key, store->import_private, sizeof(private_key)) != 0) {
        result = KH_E_DAMAGED;
    }
    OPENSSL_cleanse(private_key, sizeof(private_key));
    return result;
}

/* ---- What the store knows of itself -------------------------------------------------------------------- */

const uint8_t *kh_store_import_private(const kh_store *store)
{
    return store->import_private;
}

const uint8_t *kh_store_import_public(const kh_store *store)
{
    return store->import_public;
}

const uint8_t *kh_store_id(const kh_store *store)
{
    return store->id;
}

uint64_t kh_store_last_backup(kh_store *store)
{
    uint8_t bytes[8] = {0};

    return meta_find(store, LAST_BACKUP, bytes, sizeof(bytes)) == KH_OK ? kh_get_number(bytes, sizeof(bytes))
                                                                        : 0;
}

kh_result kh_store_note_backup(kh_store *store, uint64_t when)
{
    uint8_t bytes[8];

    kh_put_number(bytes, when, sizeof(bytes));
    return kh_meta_write(store, LAST_BACKUP, bytes, sizeof(bytes));
}
