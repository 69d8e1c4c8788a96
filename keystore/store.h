/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: key versions in an SQLite file, each private key sealed under the store key, which is sealed
 * under the KEK. A row's name, version, type, bits, usage, state, policy, creation time, id, public key and
 * number are the associated data of its seal, so a change of any of them is found when the row is read, and
 * each read reads the seal.
 *
 * One writer: the file is locked while it is open. A change that returned KH_OK is on the disk. After
 * kh_store_open no file is opened any more. One thread uses a handle.
 */
#ifndef KEYHOLD_KEYSTORE_STORE_H
#define KEYHOLD_KEYSTORE_STORE_H

#include "kek.h"
#include "material.h"

#include <keyhold/keystore.h>

typedef struct kh_store kh_store;

/* A key version that changed or is gone, and where it was; tier 0: nobody knows. */
typedef struct kh_touched {
    uint64_t ref;
    uint32_t tier;
    char place[KH_PLACE_MAX + 1];
} kh_touched;

/* Called with each of them, when the change is on the disk. */
typedef void (*kh_store_changed_fn)(void *ctx, const kh_touched *touched);

/* Who asks for a change: what root did, the front does not undo. */
typedef enum kh_store_asker { KH_ASKER_FRONT = 0, KH_ASKER_ROOT } kh_store_asker;

/* KH_E_LOCKED, KH_E_PASSPHRASE, KH_E_VERSION, KH_E_DAMAGED, KH_E_STORAGE, KH_E_NOT_FOUND (no such file). */
KH_MUST_USE kh_result kh_store_open(const char *path, kh_kek_kind kind, const uint8_t *kek_secret,
                                    size_t kek_secret_len, kh_log_fn log, void *ctx, kh_store **store);
/*
 * The same without changing anything, for a check: neither a migration nor a write. What a crashed agent left
 * in the log beside it is read too. KH_E_LOCKED: an agent has it open.
 */
KH_MUST_USE kh_result kh_store_open_to_read(const char *path, kh_kek_kind kind, const uint8_t *kek_secret,
                                            size_t kek_secret_len, kh_log_fn log, void *ctx,
                                            kh_store **store);
void kh_store_close(kh_store *store);
void kh_store_on_change(kh_store *store, kh_store_changed_fn changed, void *ctx);
/* The import key pair; both live as long as the store. */
const uint8_t *kh_store_import_private(const kh_store *store);
const uint8_t *kh_store_import_public(const kh_store *store);
/* KH_STORE_ID_LEN random bytes that name the store, and go with its copies; as long as the store lives. */
const uint8_t *kh_store_id(const kh_store *store);
/* When the last backup was complete where it should be, Unix time; 0: never. */
uint64_t kh_store_last_backup(kh_store *store);
KH_MUST_USE kh_result kh_store_note_backup(kh_store *store, uint64_t when);
/* Rows, damaged or not. */
KH_MUST_USE kh_result kh_store_count(kh_store *store, uint64_t *count);

/*
 * Adds a version. info: name, usage, flags, tier, place and validity as asked; all of it is filled on KH_OK. Of a key of a
 * token, material has its locator, and what was intended for that object is fulfilled with it. KH_E_INVALID (name,
 * usage, a usage that is not inherited), KH_E_EXISTS, KH_E_DUPLICATE, KH_E_NOT_FOUND (a new version of
 * nothing), KH_E_DISABLED (of a deleted key). KH_E_FORBIDDEN: the front would have a new version elsewhere than the one before,
 * or brings a key that was purged, or that
 * is there deleted or disabled by root; a sealed import that somebody kept would bring it back.
 */
KH_MUST_USE kh_result kh_store_insert(kh_store *store, kh_store_asker asker, kh_key_info *info,
                                      const kh_material *material);
/*
 * The same refusals without the key: whether an insertion could succeed, before a key is generated for it. Fills version,
 * and usage, tier and place where they are inherited.
 */
KH_MUST_USE kh_result kh_store_may_insert(kh_store *store, kh_store_asker asker, kh_key_info *info);
/* One version with its private key (PKCS#8; wipe it). pkcs8: KH_IMPORT_PKCS8_MAX bytes or NULL.
 * KH_E_NOT_FOUND, KH_E_DAMAGED. */
KH_MUST_USE kh_result kh_store_get(kh_store *store, uint64_t ref, kh_key_info *info, uint8_t *pkcs8,
                                   size_t *pkcs8_len);
/* Version 0: all. Enabled first, newest first. *count is 1 to max on KH_OK. Damaged ones are left out if
 * others are left. */
KH_MUST_USE kh_result kh_store_find_name(kh_store *store, const char *name, size_t name_len, uint32_t version,
                                         kh_key_info *infos, size_t max, size_t *count);
KH_MUST_USE kh_result kh_store_find_id(kh_store *store, const uint8_t id[KH_KEY_ID_LEN], kh_key_info *infos,
                                       size_t max, size_t *count);
/* The newest version; deleted ones only if `also_deleted`. KH_E_FORBIDDEN: there is none but deleted ones. */
KH_MUST_USE kh_result kh_store_newest(kh_store *store, const char *name, bool also_deleted, kh_key_info *newest);
/* The next row after *ref that is at that token or pool, by an index that is not sealed: read it. KH_E_NOT_FOUND: none. */
KH_MUST_USE kh_result kh_store_next_at(kh_store *store, const char *place, uint64_t *ref);
/* The versions that follow name/version in the order of names and versions. Damaged ones are left out. */
KH_MUST_USE kh_result kh_store_list(kh_store *store, const char *name, size_t name_len, uint32_t version,
                                    kh_key_info *infos, size_t max, size_t *count);
/*
 * version 0: to disable or delete, all that are not deleted; to enable, the newest. KH_E_FORBIDDEN: deleted
 * already, or the front would enable what root disabled. newest: of that name, afterwards.
 */
KH_MUST_USE kh_result kh_store_set_state(kh_store *store, kh_store_asker asker, const char *name,
                                         uint32_t version, uint32_t state, kh_key_info *newest);
/* Undoes deletion: each deleted version is again what it was. */
KH_MUST_USE kh_result kh_store_recover(kh_store *store, const char *name);
/*
 * Removes all versions for good. KH_E_ORDER: one of them is not deleted. KH_E_FORBIDDEN: one was deleted too lately for
 * what the name or the store retains. Objects in tokens that were made here are intended to be destroyed; places says which
 * tokens a pool has.
 */
KH_MUST_USE kh_result kh_store_purge(kh_store *store, const char *name, const kh_keeper_places *places, uint64_t now);

/* ---- store_intent.c: objects in tokens, before they are made and until they are destroyed ---------------- */

/* Written down before a token is asked, so that what a crash leaves behind is found. object: KH_P11_ID_LEN bytes. */
KH_MUST_USE kh_result kh_store_intend(kh_store *store, const char *token, const uint8_t *object, bool destroy);
/* The object is gone, or was never made. */
KH_MUST_USE kh_result kh_store_intent_done(kh_store *store, const char *token, const uint8_t *object);
/* The next of that token after `object` (16 zeros: the first), into the same. KH_E_NOT_FOUND: none. */
KH_MUST_USE kh_result kh_store_intent_next(kh_store *store, const char *token, uint8_t *object, bool *destroy);

/* What tokens have yet to destroy: out[0..max), *count of them, and *all objects, also of tokens for which there was no room. */
KH_MUST_USE kh_result kh_store_orders(kh_store *store, kh_order *out, size_t max, size_t *count, uint64_t *all);

/* ---- store_names.c: what is said of names ----------------------------------------------------------------- */

/* "": the store's. Nothing said: zeros. KH_E_DAMAGED: it is not as it was sealed (logged). */
KH_MUST_USE kh_result kh_store_policy(kh_store *store, const char *name, kh_name_policy *policy);
/*
 * As kh_key_change says; all of it or nothing. info: the version concerned, afterwards (of "": zeros). KH_E_INVALID,
 * KH_E_NOT_FOUND, KH_E_FORBIDDEN (lowers retention, or the key is deleted), KH_E_TOO_LARGE (tags).
 */
KH_MUST_USE kh_result kh_store_set(kh_store *store, const kh_key_change *change, kh_key_info *info);
/* The next name after `name` for which something is said, into the same (KH_NAME_MAX + 1). KH_E_NOT_FOUND: none. */
KH_MUST_USE kh_result kh_store_next_named(kh_store *store, char *name);
/* The key moves into a token: its private key in the store is replaced by material's locator. KH_E_ORDER: it is in one. */
KH_MUST_USE kh_result kh_store_move(kh_store *store, uint64_t ref, const kh_key_info *to, const kh_material *material,
                                    kh_key_info *info);

/* A place in the index of names: its entry, to go on from. */
typedef struct kh_index_place {
    uint64_t ref;
    int64_t version;
    size_t name_len;
    char name[KH_NAME_MAX + 1]; /* no terminating zero */
} kh_index_place;

/* A check of the whole store in slices, between which other things can be done with the store. */
typedef struct kh_store_checking {
    uint64_t changes; /* insertions and purges before it: if there are more, the numbers are not compared */
    uint64_t rows, counted_to, seen, good, findings;
    bool began, counted;
    kh_index_place at;
} kh_store_checking;

/*
 * Goes on with a check that began with all zeros, by at most `most` rows: first every row is sought in the
 * indices, then every key of the index of names is opened and compared with its public key. Appends a line
 * for each finding ("NAME/VERSION …", with what to do) and, at the end, "ok N keys" or "damaged: good are N
 * keys" to text: cap bytes, *len used, no terminating zero. What does not fit is counted. KH_AGAIN: not done
 * yet.
 */
KH_MUST_USE kh_result kh_store_check(kh_store *store, kh_store_checking *checking, unsigned most, char *text,
                                     size_t cap, size_t *len);

/*
 * Changing the KEK, to one of the same kind, while the store is in use, safe at any point: after kh_store_kek_next either of the two
 * opens the store; after kh_store_kek_end only the one that is given, whichever of the two, and after a kh_store_open by the next one
 * only that. KH_E_PASSPHRASE: kek does not open it. KH_E_INVALID: such a recipe is not to be had.
 */
KH_MUST_USE kh_result kh_store_kek_next(kh_store *store, const kh_kek_change *change);
KH_MUST_USE kh_result kh_store_kek_end(kh_store *store, const uint8_t kek[32]);
/* How the KEK comes from its secret, and during a change (*count 2) the next one from its. */
KH_MUST_USE kh_result kh_store_kek_recipes(kh_store *store, uint8_t recipes[2][KH_KEK_RECIPE_LEN], size_t *count);

/* One transaction around many insertions (for tools). */
KH_MUST_USE kh_result kh_store_begin(kh_store *store);
KH_MUST_USE kh_result kh_store_commit(kh_store *store);

#endif
