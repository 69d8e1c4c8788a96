/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader of nginx configurations and what check-nginx makes of the tree, over arbitrary bytes. The input
 * is split at lines "===": the first part is the main file, the others are what any include finds.
 */
#include "nginxconf.h"
#include "nginxsites.h"

#include <stdlib.h>
#include <string.h>

#define PARTS_MAX 8

typedef struct parts {
    const char *data[PARTS_MAX];
    size_t len[PARTS_MAX];
    size_t count;
    unsigned reads;
} parts;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* An include's name picks a part, so that files include each other and themselves; the reads of one input are
 * bounded. */
static kh_result read_part(void *ctx, const char *path, char **text, size_t *len)
{
    parts *p = ctx;
    size_t which = p->reads == 0 ? 0 : (unsigned char)path[strlen(path) - 1] % p->count;

    if (++p->reads > 2000) {
        return KH_E_IO;
    }
    *len = p->len[which];
    *text = malloc(*len > 0 ? *len : 1);
    if (*text == NULL) {
        return KH_E_MEMORY;
    }
    memcpy(*text, p->data[which], *len);
    return KH_OK;
}

static kh_result glob_parts(void *ctx, const char *pattern,
                            kh_result (*each)(void *match_ctx, const char *path), void *match_ctx)
{
    kh_result result = KH_OK;

    (void)ctx;
    (void)pattern;
    for (char name[] = "/0"; name[1] < '2' && result == KH_OK; name[1]++) {
        result = each(match_ctx, name);
    }
    return result;
}

static void split(const uint8_t *data, size_t len, parts *p)
{
    const char *at = (const char *)data;
    size_t left = len;

    while (p->count < PARTS_MAX) {
        const char *mark = left > 0 ? memmem(at, left, "\n===\n", 5) : NULL;

        p->data[p->count] = at;
        p->len[p->count++] = mark != NULL ? (size_t)(mark - at) : left;
        if (mark == NULL) {
            return;
        }
        left -= (size_t)(mark - at) + 5;
        at = mark + 5;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    parts p = {.count = 0};
    nginxconf_source source = {&p, read_part, glob_parts};
    nginxconf *conf = NULL;
    nginxsite *sites = NULL;
    size_t count = 0;
    char error[256];

    split(data, len, &p);
    if (nginxconf_parse(&source, "/main", "/prefix", &conf, error, sizeof(error)) != KH_OK) {
        if (error[0] == '\0') {
            abort(); /* a failure must say where */
        }
        return 0;
    }
    if (nginxsites_find(conf, &sites, &count) == KH_OK) {
        for (size_t i = 0; i < count; i++) {
            if (sites[i].certificate == NULL || sites[i].server_name == NULL || sites[i].line == 0) {
                abort();
            }
            for (const nginxconf_directive *agent = sites[i].agents; agent != NULL;
                 agent = nginxsites_next_agent(agent)) {
                (void)nginxsites_parameter(agent, "token");
            }
        }
    }
    free(sites);
    nginxconf_free(conf);
    return 0;
}
