/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which way for which fill: a table per kind, built in or measured at start.
 */
#include "private.h"

/* The least fill at which the kernel was faster on an Intel core of 2023 (Sapphire Rapids) against OpenSSL 3.0. */
static const uint8_t built_in[KH_KERNEL_KIND_COUNT] = {
    [KH_KERNEL_RSA2048] = 3, [KH_KERNEL_RSA3072] = 2, [KH_KERNEL_RSA4096] = 2,
    [KH_KERNEL_P256] = 2,    [KH_KERNEL_P384] = 1,    [KH_KERNEL_ED25519] = 1,
};

static uint8_t from_fill[KH_KERNEL_KIND_COUNT];

void kh_ways_reset(void)
{
    for (int kind = 0; kind < KH_KERNEL_KIND_COUNT; kind++)
        from_fill[kind] = built_in[kind];
}

kh_kernel_way kh_kernels_choose(kh_kernel_kind kind, size_t fill)
{
    if (kh_kernels_selected() == KH_BACKEND_OPENSSL || (unsigned)kind >= KH_KERNEL_KIND_COUNT || fill < 1 ||
        fill > KH_KERNEL_LANES)
        return KH_WAY_OPENSSL;
    return fill >= from_fill[kind] ? KH_WAY_KERNEL : KH_WAY_OPENSSL;
}
