/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool remove: a token leaves a pool. It loses the pool's key first, so that nothing can be placed in it any more; then the agent
 * has it destroy the sites' keys of the pool, since the store alone knows which of its objects they are.
 */
#include "agent.h"
#include "output.h"
#include "pool.h"

#include <string.h>

#define LEAVE_MS 60000 /* for one key: the agent gives a sign of life after each second */

static const char what[] = "cannot remove the partition";

kh_result pool_forget_step(kh_p11 *p11, kh_p11_session *session, const void *pool, void *out, char *error)
{
    (void)p11;
    (void)out;
    (void)error;
    return kh_p11_poolkey_forget(session, pool);
}

/* Any token of the configuration: perhaps it is in `partitions` no more. */
static kh_result take_token(ctl_run *ctl, const kh_config *config, const kh_config_token **token)
{
    const char *name = ctl->args.operands[1];
    int index = kh_config_find_token(config, name);

    if (index < 0) {
        return ctl_fail(&ctl->error, KH_E_NOT_FOUND, "%s: there is no block token \"%s\" in %s", what, name, config->path);
    }
    *token = &config->tokens[index];
    return KH_OK;
}

/* What is wrapped under a key that nobody has any more is lost. */
static kh_result another_has_it(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool, const kh_config_token *token)
{
    for (size_t i = 0; i < pool->partition_count; i++) {
        const kh_config_token *other = pool_partition(config, pool, i);

        if (other != token && pool_check(ctl, config, other, pool->name, "cannot look") == KH_OK) {
            return KH_OK;
        }
        memset(&ctl->error, 0, sizeof(ctl->error));
    }
    return ctl_fail(&ctl->error, KH_E_FORBIDDEN,
                    "no other partition has the key of pool %s: without it no key of the pool can be placed anywhere any more. Say "
                    "--last if you mean it",
                    pool->name);
}

static kh_result may_remove(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool, const kh_config_token *token,
                            bool keep)
{
    if (ctl_args_value(&ctl->args, "yes") == NULL) {
        return ctl_fail_usage(&ctl->error,
                              "token %s would lose the key of pool %s%s, and be of use again only after keyholdctl pool add; say "
                              "--yes if you mean it",
                              token->name, pool->name, keep ? "" : " and all keys of the pool that are in it");
    }
    return ctl_args_value(&ctl->args, "last") == NULL ? another_has_it(ctl, config, pool, token) : KH_OK;
}

static kh_result forget_pool_key(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool, const kh_config_token *token)
{
    ctl_error first;
    kh_result result = pool_step(ctl, config, token, what, pool_forget_step, pool->name, NULL, 0);

    if (result == KH_OK) {
        return result;
    }
    first = ctl->error;
    return ctl_fail(&ctl->error, result,
                    "%s. Nothing was changed: what the token has of pool %s stays in it, for whoever has its PIN. Take it out of "
                    "`partitions` in %s and reload, so that it is used no more; say this again when it can be reached, or initialize "
                    "the token anew before it goes out of your hands",
                    first.text, pool->name, config->path);
}

static kh_result leave(ctl_run *ctl, ctl_agent *agent, const kh_config_pool *pool, const kh_config_token *token, kh_left *left)
{
    kh_pool_leave asked = {.pool = ""};
    const kh_record record = {.op = KH_STORE_LEAVE, .data = (const uint8_t *)&asked, .data_len = sizeof(asked)};
    const uint32_t usual_ms = ctl->timeout_ms;
    size_t len = 0;
    kh_result result = KH_OK;

    strncpy(asked.pool, pool->name, KH_PLACE_MAX);
    strncpy(asked.token, token->name, KH_PLACE_MAX);
    ctl->timeout_ms = usual_ms > LEAVE_MS ? usual_ms : LEAVE_MS;
    result = ctl_agent_admin(agent, &record, what, (uint8_t *)left, sizeof(*left), &len);
    ctl->timeout_ms = usual_ms;
    if (result == KH_OK && len == sizeof(*left) && left->kept == 0) {
        return KH_OK;
    }
    if (result == KH_OK) {
        return ctl_fail(&ctl->error, KH_E_UNAVAILABLE,
                        "token %s has the key of pool %s no more, but would not destroy %llu keys of the pool, which stay in it; the "
                        "agent's log says why. Say this again, or initialize the token anew",
                        token->name, pool->name, (unsigned long long)left->kept);
    }
    return ctl_fail(&ctl->error, result,
                    "token %s has the key of pool %s no more, but the keys of the pool that are in it stay: the agent %s. Say this "
                    "again when it does, or initialize the token anew",
                    token->name, pool->name,
                    result == KH_E_NOT_FOUND ? "has no such token in its configuration (reload it)" : "does not reach the token");
}

static kh_result say_removed(ctl_run *ctl, const kh_config *config, const kh_config_pool *pool, const kh_config_token *token,
                             const kh_left *left)
{
    if (ctl->json) {
        json_t *json = json_pack("{s:s, s:s}", "pool", pool->name, "token", token->name);

        (void)json_object_set_new(json, "keys_destroyed", left != NULL ? json_integer((json_int_t)left->gone) : json_null());
        return output_json(json, &ctl->error);
    }
    if (left == NULL) {
        (void)printf("token %s has no key of pool %s any more; the keys of the pool that are in it stay, until it is initialized anew\n",
                     token->name, pool->name);
    } else {
        (void)printf("token %s has no key of pool %s any more, and none of the pool's %llu keys\n", token->name, pool->name,
                     (unsigned long long)left->gone);
    }
    for (size_t i = 0; i < pool->partition_count; i++) {
        if (pool_partition(config, pool, i) == token) {
            (void)printf("Take it out of `partitions` in %s, then reload\n", config->path);
        }
    }
    return KH_OK;
}

kh_result ctl_cmd_pool_remove(ctl_run *ctl)
{
    const bool keep = ctl_args_value(&ctl->args, "keep") != NULL;
    kh_config *config = NULL;
    const kh_config_pool *pool = NULL;
    const kh_config_token *token = NULL;
    ctl_agent *agent = NULL;
    kh_left left = {0};
    kh_result result = pool_take(ctl, &config, &pool);

    if (result == KH_OK) {
        result = take_token(ctl, config, &token);
    }
    if (result == KH_OK) {
        result = may_remove(ctl, config, pool, token, keep);
    }
    if (result == KH_OK && !keep) { /* before anything is changed */
        result = ctl_agent_open(ctl, CTL_WAY_ADMIN, &agent);
    }
    if (result == KH_OK) {
        result = forget_pool_key(ctl, config, pool, token);
    }
    if (result == KH_OK && !keep) {
        result = leave(ctl, agent, pool, token, &left);
    }
    if (result == KH_OK) {
        result = say_removed(ctl, config, pool, token, keep ? NULL : &left);
    }
    ctl_agent_close(agent);
    kh_config_free(config);
    return result;
}
