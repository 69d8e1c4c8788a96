/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of a backend; compiled once for each, like the kernels it names.
 */
#include "private.h"

kh_kernel_fn KH_FN(kh_rsa_run), KH_FN(kh_p256_run), KH_FN(kh_p384_run), KH_FN(kh_ed25519_run);
kh_result KH_FN(kh_p256_init)(void);
kh_result KH_FN(kh_p384_init)(void);
kh_result KH_FN(kh_ed25519_init)(void);

static kh_result init(void)
{
    kh_result rc = KH_FN(kh_p256_init)();

    if (rc == KH_OK)
        rc = KH_FN(kh_p384_init)();
    if (rc == KH_OK)
        rc = KH_FN(kh_ed25519_init)();
    return rc;
}

static void wipe_registers(void)
{
    kh_vec_wipe_registers();
}

const kh_backend_table KH_FN(kh_backend) = {
    .init = init,
    .run =
        {
            [KH_KERNEL_RSA2048] = KH_FN(kh_rsa_run),
            [KH_KERNEL_RSA3072] = KH_FN(kh_rsa_run),
            [KH_KERNEL_RSA4096] = KH_FN(kh_rsa_run),
            [KH_KERNEL_P256] = KH_FN(kh_p256_run),
            [KH_KERNEL_P384] = KH_FN(kh_p384_run),
            [KH_KERNEL_ED25519] = KH_FN(kh_ed25519_run),
        },
    .wipe_registers = wipe_registers,
};
