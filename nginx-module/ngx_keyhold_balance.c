/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which agent an operation goes to, and how many second tries there may be.
 */

#include "ngx_keyhold_balance.h"


/* weights in the choice are this many times finer, for the slow start */
#define NGX_KEYHOLD_FINE  64
#define NGX_KEYHOLD_LEAST 4


static ngx_uint_t
ngx_keyhold_share_weight(ngx_keyhold_share_t *share, ngx_msec_t now)
{
    ngx_msec_t  elapsed;
    ngx_uint_t  fine;

    fine = NGX_KEYHOLD_FINE;

    if (share->slow) {
        elapsed = now - share->began;

        if (elapsed >= NGX_KEYHOLD_SLOW_START) {
            share->slow = 0;

        } else {
            fine = ngx_max(NGX_KEYHOLD_LEAST,
                           NGX_KEYHOLD_FINE * elapsed / NGX_KEYHOLD_SLOW_START);
        }
    }

    return share->weight * fine;
}


void
ngx_keyhold_share_return(ngx_keyhold_share_t *share, ngx_msec_t now)
{
    share->slow = 1;
    share->began = now;
    share->current = 0;
}


ngx_uint_t
ngx_keyhold_share_reluctant(ngx_keyhold_share_t *share, ngx_msec_t now)
{
    if (share->avoided && (ngx_msec_int_t) (now - share->avoid) >= 0) {
        share->avoided = 0;
    }

    return share->avoided || (share->trial && share->work);
}


/* Lower is better: a backup only where no primary can, and so on. */

static ngx_uint_t
ngx_keyhold_share_rank(ngx_keyhold_share_t *share, ngx_uint_t tried,
    ngx_msec_t now)
{
    return (tried ? 4 : 0)
           + (ngx_keyhold_share_reluctant(share, now) ? 2 : 0)
           + share->backup;
}


ngx_uint_t
ngx_keyhold_balance(ngx_keyhold_share_t **shares, ngx_keyhold_set_t set,
    ngx_keyhold_set_t tried, ngx_uint_t work, ngx_msec_t now)
{
    int64_t               total;
    ngx_uint_t            i, rank, best, w, pick, pick_w, least, least_w;
    ngx_keyhold_share_t  *share;

    if ((set & (set - 1)) == 0) {
        return __builtin_ctz(set);
    }

    best = 8;
    total = 0;
    pick = least = 0;
    pick_w = least_w = 1;

    for (i = 0; i < NGX_KEYHOLD_AGENTS_MAX && (set >> i); i++) {

        if (!(set & ngx_keyhold_bit(i))) {
            continue;
        }

        rank = ngx_keyhold_share_rank(shares[i],
                                      tried & ngx_keyhold_bit(i), now);

        if (rank > best) {
            set &= ~ngx_keyhold_bit(i);

        } else if (rank < best) {
            best = rank;
            set &= ~(ngx_keyhold_bit(i) - 1);
        }
    }

    for (i = 0; i < NGX_KEYHOLD_AGENTS_MAX && (set >> i); i++) {

        if (!(set & ngx_keyhold_bit(i))) {
            continue;
        }

        share = shares[i];
        w = ngx_keyhold_share_weight(share, now);

        share->current += w;

        if (total == 0 || share->current > shares[pick]->current) {
            pick = i;
            pick_w = w;
        }

        if (total == 0
            || (share->work + work) * least_w
               < (shares[least]->work + work) * w)
        {
            least = i;
            least_w = w;
        }

        total += w;
    }

    if (shares[pick]->work * least_w > (shares[least]->work + work) * pick_w) {

        /* who is passed over because of its load does not save it all up */

        shares[pick]->current = ngx_min(shares[pick]->current, total);
        pick = least;
    }

    shares[pick]->current = ngx_max(shares[pick]->current - total, -2 * total);

    return pick;
}


/* ---- second tries ---- */


void
ngx_keyhold_budget_init(ngx_keyhold_budget_t *budget)
{
    budget->parts = NGX_KEYHOLD_BUDGET_BURST * NGX_KEYHOLD_BUDGET_PART;
}


void
ngx_keyhold_budget_earn(ngx_keyhold_budget_t *budget)
{
    if (budget->parts < NGX_KEYHOLD_BUDGET_BURST * NGX_KEYHOLD_BUDGET_PART) {
        budget->parts++;
    }
}


ngx_uint_t
ngx_keyhold_budget_take(ngx_keyhold_budget_t *budget)
{
    if (budget->parts < NGX_KEYHOLD_BUDGET_PART) {
        return 0;
    }

    budget->parts -= NGX_KEYHOLD_BUDGET_PART;

    return 1;
}


void
ngx_keyhold_budget_return(ngx_keyhold_budget_t *budget)
{
    budget->parts += NGX_KEYHOLD_BUDGET_PART;
}
