/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool init, add, status, repair: the pool key of a pool's partitions. It is made in one token and
 * goes to the others under keys that they make; keyholdctl carries it sealed and never has it.
 */
#include "agent.h"
#include "output.h"
#include "pool.h"
#include "secret.h"

#include <stdlib.h>
#include <string.h>

static const char on_init[] = "cannot set up the pool", on_add[] = "cannot add the partition";

kh_result pool_take(ctl_run *ctl, kh_config **config, const kh_config_pool **pool)
{
    const char *name = ctl->args.operands[0];
    kh_result result = ctl_load_config(ctl, config);

    for (size_t i = 0; result == KH_OK && i < (*config)->pool_count; i++) {
        if (strcmp((*config)->pools[i].name, name) == 0) {
            *pool = &(*config)->pools[i];
            return KH_OK;
        }
    }
    return result != KH_OK
               ? result
               : ctl_fail(&ctl->error, KH_E_NOT_FOUND, "%s has no pool \"%s\"", (*config)->path, name);
}

const kh_config_token *pool_partition(const kh_config *config, const kh_config_pool *pool, size_t i)
{
    return &config->tokens[pool->partitions[i]];
}

/* ---- The steps, in the tokens' processes ---- */

static kh_result check_step(kh_p11 *p11, kh_p11_session *session, const void *pool, void *out, char *error)
{
    (void)p11;
    (void)out;
    (void)error;
    return kh_p11_poolkey_check(session, pool);
}

static kh_result receive_step(kh_p11 *p11, kh_p11_session *session, const void *pool, void *out, char *error)
{
    (void)p11;
    (void)error;
    return kh_p11_poolkey_receive(session, pool, out);
}

typedef struct begin_in {
    kh_p11_offer offers[KH_PARTITIONS_MAX];
    size_t count;
} begin_in;

static kh_result begin_step(kh_p11 *p11, kh_p11_session *session, const void *in, void *out, char *error)
{
    const begin_in *begin = in;

    (void)p11;
    (void)error;
    return kh_p11_poolkey_begin(session, begin->offers, begin->count, out);
}

typedef struct accept_in {
    const char *pool;
    const kh_p11_transfer *transfer;
} accept_in;

static kh_result accept_step(kh_p11 *p11, kh_p11_session *session, const void *in, void *out, char *error)
{
    const accept_in *accept = in;

    (void)p11;
    (void)out;
    (void)error;
    return kh_p11_poolkey_accept(session, accept->pool, accept->transfer);
}

typedef struct give_in {
    const char *pool;
    const ctl_secret *so_pin;
    const kh_p11_offer *offer;
} give_in;

static kh_result give_step(kh_p11 *p11, kh_p11_session *session, const void *in, void *out, char *error)
{
    const give_in *give = in;

    (void)session;
    return kh_p11_poolkey_hand_over(p11, give->so_pin->data, give->so_pin->len, give->pool, give->offer, out,
                                    error);
}

kh_result pool_step(ctl_run *ctl, const kh_config *config, const kh_config_token *token,
                          const char *what, ctl_token_fn step, const void *in, void *out, size_t out_len)
{
    const ctl_token_work work = {
        .run = step, .in = in, .out = out, .out_len = out_len, .what = what, .timeout_ms = MAKE_MS};

    return ctl_token_do(ctl, config, token, &work);
}

kh_result pool_check(ctl_run *ctl, const kh_config *config, const kh_config_token *token, const char *pool,
                       const char *what)
{
    const ctl_token_work work = {.run = check_step, .in = pool, .what = what, .timeout_ms = ctl->timeout_ms};

    return ctl_token_do(ctl, config, token, &work);
}

/* ---- pool init ---- */

/* A new pool begins where nothing is: what blobs an old pool key wrapped would be lost with it. */
static kh_result expect_empty(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool)
{
    for (size_t i = 0; i < pool->partition_count; i++) {
        const kh_config_token *token = pool_partition(config, pool, i);
        kh_result result = pool_check(ctl, config, token, pool->name, on_init);

        if (result == KH_OK || result == KH_E_FORBIDDEN) {
            return ctl_fail(
                &ctl->error, KH_E_EXISTS,
                "%s: token %s has a key of pool %s already; the others get it by keyholdctl pool add, and "
                "keyholdctl pool remove takes it out",
                on_init, token->name, pool->name);
        }
        if (result != KH_E_NOT_FOUND) {
            return result;
        }
    }
    return KH_OK;
}

typedef struct counting {
    const char *pool;
    size_t keys;
} counting;

static kh_result count_key(void *ctx, const kh_key_info *info)
{
    counting *of = ctx;

    of->keys += info->tier == KH_TIER_HSM_POOL && strcmp(info->place, of->pool) == 0;
    return KH_OK;
}

/* Nor in the store: keys that an older pool key of that name wrapped would be opened by nobody any more. */
static kh_result expect_no_keys(ctl_run *ctl, const kh_config_pool *pool)
{
    counting of = {.pool = pool->name};
    ctl_agent *agent = NULL;
    kh_result result = KH_OK;

    if (ctl_args_value(&ctl->args, "force") != NULL) {
        return KH_OK;
    }
    result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    if (result == KH_OK) {
        result = ctl_agent_list(agent, "*", count_key, &of);
    }
    ctl_agent_close(agent);
    if (result == KH_E_UNAVAILABLE) { /* no agent: nothing is lost that repair could have brought back meanwhile */
        memset(&ctl->error, 0, sizeof(ctl->error));
        (void)fprintf(stderr, "keyholdctl: the agent does not answer, so nobody has looked whether the store has keys of pool %s\n",
                      pool->name);
        return KH_OK;
    }
    return result != KH_OK || of.keys == 0
               ? result
               : ctl_fail(&ctl->error, KH_E_EXISTS,
                          "%s: the store has %zu keys of pool %s, wrapped under a pool key that no partition here has: with a new "
                          "one they could never be placed again. If a token still has the old one, put it into `partitions` and "
                          "say keyholdctl pool add for the others; if none has, delete and purge these keys, or say --force",
                          on_init, of.keys, pool->name);
}

static kh_result init_pool(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool, begin_in *begin,
                           kh_p11_transfer *transfers)
{
    kh_result result = expect_empty(ctl, config, pool);

    if (result == KH_OK) {
        result = expect_no_keys(ctl, pool);
    }
    for (size_t i = 0; i < pool->partition_count && result == KH_OK; i++) {
        result = pool_step(ctl, config, pool_partition(config, pool, i), on_init, receive_step, pool->name,
                          &begin->offers[i], sizeof(begin->offers[i]));
        begin->count++;
    }
    if (result == KH_OK) {
        result = pool_step(ctl, config, pool_partition(config, pool, 0), on_init, begin_step, begin, transfers,
                          begin->count * sizeof(*transfers));
    }
    for (size_t i = 0; i < pool->partition_count && result == KH_OK; i++) {
        const accept_in accept = {pool->name, &transfers[i]};

        result = pool_step(ctl, config, pool_partition(config, pool, i), on_init, accept_step, &accept, NULL, 0);
    }
    return result;
}

kh_result ctl_cmd_pool_init(ctl_run *ctl)
{
    kh_config *config = NULL;
    const kh_config_pool *pool = NULL;
    begin_in *begin = calloc(1, sizeof(*begin));
    kh_p11_transfer *transfers = calloc(KH_PARTITIONS_MAX, sizeof(*transfers));
    kh_result result = begin != NULL && transfers != NULL
                           ? pool_take(ctl, &config, &pool)
                           : ctl_fail(&ctl->error, KH_E_MEMORY, "out of memory");

    if (result != KH_OK) {
        goto done;
    }
    result = init_pool(ctl, config, pool, begin, transfers);
    if (result != KH_OK && begin->count > 0) {
        /* A pool that some partitions have and others do not would be worse than none. */
        ctl_error first = ctl->error;

        for (size_t i = 0; i < pool->partition_count; i++) {
            (void)!pool_step(ctl, config, pool_partition(config, pool, i), on_init, pool_forget_step, pool->name, NULL,
                            0);
        }
        ctl->error = first;
    }
    if (result == KH_OK && ctl->json) {
        result = output_json(
            json_pack("{s:s, s:I}", "pool", pool->name, "partitions", (json_int_t)pool->partition_count),
            &ctl->error);
    } else if (result == KH_OK) {
        (void)printf(
            "pool %s: %zu partitions have its key, and nobody else; keys are made with --tier hsm-pool\n",
            pool->name, pool->partition_count);
    }
done:
    kh_config_free(config);
    free(begin);
    free(transfers);
    return result;
}

/* ---- pool add ---- */

static kh_result take_partition(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool,
                                const kh_config_token **token)
{
    const char *name = ctl->args.operands[1];

    for (size_t i = 0; i < pool->partition_count; i++) {
        if (strcmp(pool_partition(config, pool, i)->name, name) == 0) {
            *token = pool_partition(config, pool, i);
            return KH_OK;
        }
    }
    return ctl_fail(&ctl->error, KH_E_NOT_FOUND,
                    "pool %s has no partition \"%s\"; write it into its `partitions` in %s first", pool->name,
                    name, config->path);
}

/* The first other partition that has the pool key. */
static kh_result find_giver(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool,
                            const kh_config_token *joins, const kh_config_token **giver)
{
    for (size_t i = 0; i < pool->partition_count; i++) {
        const kh_config_token *token = pool_partition(config, pool, i);

        if (token != joins && pool_check(ctl, config, token, pool->name, on_add) == KH_OK) {
            *giver = token;
            return KH_OK;
        }
    }
    return ctl_fail(&ctl->error, KH_E_NOT_FOUND,
                    "%s: no other partition that can be reached has the key of pool %s; a new pool begins "
                    "with keyholdctl pool "
                    "init",
                    on_add, pool->name);
}

static kh_result add(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool,
                     const kh_config_token *joins)
{
    ctl_passphrase_source source = {.file = ctl_args_value(&ctl->args, "so-pin-file")};
    const kh_config_token *giver = NULL;
    ctl_secret so_pin = {0};
    char prompt[128];
    kh_p11_offer offer;
    kh_p11_transfer transfer;
    const give_in give = {pool->name, &so_pin, &offer};
    const accept_in accept = {pool->name, &transfer};
    const ctl_token_work giving = {.run = give_step,
                                   .in = &give,
                                   .out = &transfer,
                                   .out_len = sizeof(transfer),
                                   .no_login = true,
                                   .what = on_add,
                                   .timeout_ms = MAKE_MS};
    kh_result result = find_giver(ctl, config, pool, joins, &giver);

    if (result == KH_OK) {
        (void)snprintf(prompt, sizeof(prompt), "PIN of the security officer of token %s", giver->name);
        source.prompt = prompt;
        result = ctl_secret_passphrase(&source, &so_pin, &ctl->error);
    }
    if (result == KH_OK) {
        result = pool_step(ctl, config, joins, on_add, receive_step, pool->name, &offer, sizeof(offer));
    }
    if (result == KH_OK) {
        result = ctl_token_do(ctl, config, giver, &giving);
    }
    if (result == KH_OK) {
        result = pool_step(ctl, config, joins, on_add, accept_step, &accept, NULL, 0);
    }
    ctl_secret_free(&so_pin);
    return result;
}

/* Tells a running agent to place the keys; none is running: it does so when it starts. */
static kh_result repair(ctl_run *ctl, const char *pool)
{
    const kh_record record = {
        .op = KH_STORE_REPAIR, .data = (const uint8_t *)pool, .data_len = (uint32_t)strlen(pool)};
    ctl_agent *agent = NULL;
    size_t len = 0;
    kh_result result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);

    if (result == KH_OK) {
        result = ctl_agent_admin(agent, &record, "cannot repair the pool", NULL, 0, &len);
    }
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_pool_add(ctl_run *ctl)
{
    kh_config *config = NULL;
    const kh_config_pool *pool = NULL;
    const kh_config_token *token = NULL;
    kh_result result = pool_take(ctl, &config, &pool);

    if (result == KH_OK) {
        result = take_partition(ctl, config, pool, &token);
    }
    if (result == KH_OK) {
        result = add(ctl, config, pool, token);
    }
    if (result == KH_OK) {
        bool placing = repair(ctl, pool->name) == KH_OK;

        memset(&ctl->error, 0, sizeof(ctl->error));
        (void)printf("partition %s has the key of pool %s; its keys are placed %s\n", token->name, pool->name,
                     placing ? "now" : "when the agent has it in its configuration");
    }
    kh_config_free(config);
    return result;
}

/* ---- pool repair, status ---- */

kh_result ctl_cmd_pool_repair(ctl_run *ctl)
{
    kh_config *config = NULL;
    const kh_config_pool *pool = NULL;
    kh_result result = pool_take(ctl, &config, &pool);

    if (result == KH_OK) {
        result = repair(ctl, pool->name);
    }
    if (result == KH_OK) {
        (void)printf("the keys of pool %s are looked for in all its partitions, and placed where they are "
                     "missing; the agent's log "
                     "says how many\n",
                     pool->name);
    }
    kh_config_free(config);
    return result;
}

/* "ok", or what is wrong with it. */
static const char *state_of(ctl_run *ctl, kh_result result)
{
    const char *why = NULL;

    if (result == KH_OK) {
        return "ok";
    }
    if (result == KH_E_NOT_FOUND) {
        return "missing: keyholdctl pool add";
    }
    why = strstr(ctl->error.text, ": token ");
    why = why != NULL ? strchr(why + 2, ':') : NULL;
    return why != NULL ? why + 2 : ctl->error.text;
}

kh_result ctl_cmd_pool_status(ctl_run *ctl)
{
    static const char *const headings[] = {"PARTITION", "LABEL", "POOL KEY"};
    kh_config *config = NULL;
    const kh_config_pool *pool = NULL;
    output_table *table = output_table_new(headings, 3);
    json_t *list = json_array();
    size_t good = 0;
    kh_result result = pool_take(ctl, &config, &pool);

    for (size_t i = 0; result == KH_OK && i < pool->partition_count; i++) {
        const kh_config_token *token = pool_partition(config, pool, i);
        kh_result found = pool_check(ctl, config, token, pool->name, "cannot look");
        const char *state = state_of(ctl, found);
        const char *cells[] = {token->name, token->label != NULL ? token->label : "", state};

        good += found == KH_OK;
        output_table_row(table, cells);
        (void)json_array_append_new(list, json_pack("{s:s, s:b, s:s}", "partition", token->name, "key",
                                                    found == KH_OK, "state", state));
        memset(&ctl->error, 0, sizeof(ctl->error));
    }
    if (result == KH_OK && ctl->json) {
        result = output_json(json_pack("{s:s, s:I, s:O}", "pool", pool->name, "quorum",
                                       (json_int_t)pool->quorum, "partitions", list),
                             &ctl->error);
    } else if (result == KH_OK) {
        result = output_table_print(table, stdout);
    }
    if (result == KH_OK && good < pool->partition_count) {
        result = ctl_fail(&ctl->error, KH_E_UNAVAILABLE, "%zu of %zu partitions of pool %s have its key",
                          good, pool->partition_count, pool->name);
    }
    output_table_free(table);
    json_decref(list);
    kh_config_free(config);
    return result;
}
