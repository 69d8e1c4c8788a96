/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which keys an agent was found to lack: a table of fixed size, so that neither
 * many keys nor many names make it grow.
 */

#include "ngx_keyhold_balance.h"


/* FNV-1a; the names are the configuration's, nobody chooses them against us */

uint64_t
ngx_keyhold_missing_key(const u_char *data, size_t len)
{
    size_t    i;
    uint64_t  key;

    key = 0xcbf29ce484222325;

    for (i = 0; i < len; i++) {
        key = (key ^ data[i]) * 0x100000001b3;
    }

    /* the last bytes have changed the lower half alone */

    key ^= key >> 32;
    key *= 0xd6e8feb86659fd93;

    return key ^ (key >> 32);
}


static ngx_keyhold_missing_entry_t *
ngx_keyhold_missing_set(ngx_keyhold_missing_t *missing, uint64_t key)
{
    return missing->entries[(key >> 32) % NGX_KEYHOLD_MISSING_SETS];
}


static ngx_keyhold_missing_entry_t *
ngx_keyhold_missing_find(ngx_keyhold_missing_t *missing, uint64_t key)
{
    ngx_uint_t                    i;
    ngx_keyhold_missing_entry_t  *set;

    set = ngx_keyhold_missing_set(missing, key);

    for (i = 0; i < NGX_KEYHOLD_MISSING_WAYS; i++) {
        if (set[i].used && set[i].key == key) {
            return &set[i];
        }
    }

    return NULL;
}


void
ngx_keyhold_missing_add(ngx_keyhold_missing_t *missing, uint64_t key,
    ngx_msec_t now)
{
    ngx_uint_t                    i;
    ngx_keyhold_missing_entry_t  *set, *entry;

    entry = ngx_keyhold_missing_find(missing, key);

    if (entry == NULL) {
        set = ngx_keyhold_missing_set(missing, key);
        entry = &set[0];

        for (i = 1; i < NGX_KEYHOLD_MISSING_WAYS && entry->used; i++) {
            if (!set[i].used
                || (ngx_msec_int_t) (set[i].since - entry->since) < 0)
            {
                entry = &set[i];
            }
        }
    }

    entry->key = key;
    entry->since = now;
    entry->used = 1;
}


ngx_msec_int_t
ngx_keyhold_missing_since(ngx_keyhold_missing_t *missing, uint64_t key,
    ngx_msec_t now)
{
    ngx_msec_t                    since;
    ngx_keyhold_missing_entry_t  *entry;

    entry = ngx_keyhold_missing_find(missing, key);

    if (entry == NULL) {
        return -1;
    }

    since = now - entry->since;

    if (since >= NGX_KEYHOLD_MISSING_MSEC) {
        entry->used = 0;
        return -1;
    }

    return (ngx_msec_int_t) since;
}
