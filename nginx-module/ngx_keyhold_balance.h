/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policy without connections and without a clock: which agent an operation goes
 * to, how many second tries there may be, and which agent lacks which key.  The
 * time is passed in.
 */

#ifndef _NGX_KEYHOLD_BALANCE_H_INCLUDED_
#define _NGX_KEYHOLD_BALANCE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


#define NGX_KEYHOLD_AGENTS_MAX   32      /* bits of a set */
#define NGX_KEYHOLD_WEIGHT_MAX   1000
#define NGX_KEYHOLD_SLOW_START   5000    /* msec until the full share is back */
#define NGX_KEYHOLD_MISSING_MSEC 10000   /* an agent is not asked again */


/* A set of agents, by index. */
typedef uint32_t  ngx_keyhold_set_t;

#define ngx_keyhold_bit(index)  ((ngx_keyhold_set_t) 1 << (index))


/* ---- which agent ---- */

/* An agent as the choice sees it; inside ngx_keyhold_agent_t. */

typedef struct {
    ngx_uint_t                weight;     /* 1 to NGX_KEYHOLD_WEIGHT_MAX */
    ngx_uint_t                work;       /* outstanding, in units of work */
    ngx_msec_t                began;      /* of the slow start */
    ngx_msec_t                avoid;      /* until then only if need be */
    int64_t                   current;    /* of the round robin */
    unsigned                  backup:1;
    unsigned                  slow:1;     /* its share still rises */
    unsigned                  avoided:1;
    unsigned                  trial:1;    /* one at a time, until it has served */
} ngx_keyhold_share_t;


/*
 * The agent for an operation of that much work, from a set that is not empty:
 * shares[0] to shares[31] are looked at where `set` has their bit.  Those in
 * `tried` only if there is no other.  Returns the index.
 *
 * The choice is a smooth weighted round robin, unless another agent would have
 * less outstanding, relative to its weight, with this operation than the one
 * whose turn it is has without it: so shares follow the weights when there is
 * little to do, and the least loaded is chosen when there is much.
 */
ngx_uint_t ngx_keyhold_balance(ngx_keyhold_share_t **shares,
    ngx_keyhold_set_t set, ngx_keyhold_set_t tried, ngx_uint_t work,
    ngx_msec_t now);
/* The agent was away: its share rises slowly from here. */
void ngx_keyhold_share_return(ngx_keyhold_share_t *share, ngx_msec_t now);
/* Whether it is to be spared if there is another. */
ngx_uint_t ngx_keyhold_share_reluctant(ngx_keyhold_share_t *share,
    ngx_msec_t now);


/* ---- second tries ---- */

/*
 * Each operation earns a tenth of a second try; so many may be saved.  What was
 * in flight to an agent that is lost needs none.
 */

#define NGX_KEYHOLD_BUDGET_PART   10
#define NGX_KEYHOLD_BUDGET_BURST  50

typedef struct {
    ngx_uint_t                parts;
} ngx_keyhold_budget_t;

void ngx_keyhold_budget_init(ngx_keyhold_budget_t *budget);
void ngx_keyhold_budget_earn(ngx_keyhold_budget_t *budget);
/* 1: there is one, and it is taken. */
ngx_uint_t ngx_keyhold_budget_take(ngx_keyhold_budget_t *budget);
void ngx_keyhold_budget_return(ngx_keyhold_budget_t *budget);


/* ---- which agent lacks which key ---- */

#define NGX_KEYHOLD_MISSING_SETS  512
#define NGX_KEYHOLD_MISSING_WAYS  4

typedef struct {
    uint64_t                  key;
    ngx_msec_t                since;
    ngx_uint_t                used;
} ngx_keyhold_missing_entry_t;

/* Of one agent.  Full, the oldest of four entries makes way. */

typedef struct {
    ngx_keyhold_missing_entry_t
                  entries[NGX_KEYHOLD_MISSING_SETS][NGX_KEYHOLD_MISSING_WAYS];
} ngx_keyhold_missing_t;

/* What stands for a key's name or id. */
uint64_t ngx_keyhold_missing_key(const u_char *data, size_t len);
void ngx_keyhold_missing_add(ngx_keyhold_missing_t *missing, uint64_t key,
    ngx_msec_t now);
/* How long ago it was found missing, in msec; -1: it was not, or long ago. */
ngx_msec_int_t ngx_keyhold_missing_since(ngx_keyhold_missing_t *missing,
    uint64_t key, ngx_msec_t now);


#endif /* _NGX_KEYHOLD_BALANCE_H_INCLUDED_ */
