/* SPDX-License-Identifier: Apache-2.0 */
/* The names by which identities are known over TCP: taken from the configuration, and found again. */
#include "config_syntax.h"
#include "san.h"
#include <stdlib.h>
#include <string.h>

kh_result kh_config_take_sans(cfg_t *cfg, kh_config_identity *identity)
{
    unsigned count = cfg_size(cfg, "san");
    char canonical[KH_SAN_MAX + 1];

    identity->sans = calloc(count + 1, sizeof *identity->sans);
    if (identity->sans == NULL) {
        return KH_E_MEMORY;
    }
    for (unsigned i = 0; i < count; i++) {
        const char *value = cfg_getnstr(cfg, "san", i);

        if (kh_san_canonical(value, strlen(value), canonical) != KH_OK ||
            (identity->sans[i] = strdup(canonical)) == NULL) {
            return KH_E_MEMORY; /* its form was checked already */
        }
        identity->san_count++;
    }
    return KH_OK;
}

void kh_config_free_sans(kh_config_identity *identity)
{
    for (size_t i = 0; i < identity->san_count; i++) {
        free(identity->sans[i]);
    }
    free(identity->sans);
}

static int compare(const void *a, const void *b)
{
    const kh_config_san *x = a, *y = b;
    int order = strcmp(x->text, y->text);

    return order != 0 ? order : (x->identity > y->identity) - (x->identity < y->identity);
}

kh_result kh_config_order_sans(kh_config *config, char *error)
{
    size_t count = 0;

    for (size_t i = 0; i < config->identity_count; i++) {
        count += config->identities[i].san_count;
    }
    config->sans = calloc(count + 1, sizeof *config->sans);
    if (config->sans == NULL) {
        return KH_E_MEMORY;
    }
    for (size_t i = 0; i < config->identity_count; i++) {
        for (size_t j = 0; j < config->identities[i].san_count; j++) {
            config->sans[config->san_count++] = (kh_config_san){config->identities[i].sans[j], i};
        }
    }
    qsort(config->sans, config->san_count, sizeof *config->sans, compare);
    for (size_t i = 1; i < config->san_count; i++) {
        const kh_config_san *a = &config->sans[i - 1], *b = &config->sans[i];

        if (strcmp(a->text, b->text) == 0) {
            return kh_config_fail(config, config->identities[b->identity].line, error,
                                  a->identity == b->identity ? "is there twice: san " : "is the name of another identity, too: san ",
                                  b->text);
        }
    }
    return KH_OK;
}

static int find(const void *key, const void *element)
{
    return strcmp(key, ((const kh_config_san *)element)->text);
}

const kh_config_identity *kh_config_find_san(const kh_config *config, const char *san)
{
    const kh_config_san *found = bsearch(san, config->sans, config->san_count, sizeof *config->sans, find);

    return found != NULL ? &config->identities[found->identity] : NULL;
}
