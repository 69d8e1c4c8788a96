/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ECDSA on P-256 (FIPS 186-5; SP 800-186, 3.2.1.3): the curve's constants for ecdsa.h, in limbs of 52 bits,
 * lowest first. p = 2^256 - 2^224 + 2^192 + 2^96 - 1.
 */
#include <stdlib.h>

#include "field.h"

#define EC_LEN 5
#define EC_BITS 256
#define EC_BYTES 32
#define EC_WINDOWS 43
#define EC_RUN kh_p256_run
#define EC_INIT kh_p256_init
#define EC_WORK_LEN kh_p256_work_len
#define EC_ORDER_BYTES                                                                                       \
    {                                                                                                        \
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,      \
            0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51   \
    }

/* the field */
static const kh_modulus ec_p = {
    .n = {0xfffffffffffff, 0x00fffffffffff, 0x0000000000000, 0x0001000000000, 0x0ffffffff0000},
    .k0 = 0x1,
    .up = {0x0100000000000, 0x0000000000000, 0x0001000000000, 0x0ffffffff0000, 0x0000000000000},
    .rr = {0x0000000000300, 0xffffffff00000, 0xffffefffffffb, 0xfdfffffffffff, 0x0000004ffffff},
    .rrr = {0xfd0000000a000, 0xffffff7ffffff, 0xfffcffffffedf, 0x100000005ffff, 0x0000180000000},
    .inv_fix = {0x000a000000180, 0xffffffffd0000, 0xffffedffffffd, 0xfedfffffffcff, 0x00000018fffff},
};

/* the order of the group */
static const kh_modulus ec_n = {
    .n = {0x9cac2fc632551, 0xada7179e84f3b, 0xfffffffbce6fa, 0x0000fffffffff, 0x0ffffffff0000},
    .k0 = 0x1c8aaee00bc4f,
    .rr = {0x5cc0dea6dc3ba, 0x192a067d8a084, 0xbec59615571bb, 0x1fc245b2392b6, 0x0e12d9559d956},
    .rrr = {0x9617f757e3b0d, 0x73e9fd26776fc, 0xe93f26238f08c, 0x4d513b9246ba5, 0x0a54e7b437be6},
    .inv_fix = {0xcfdbe86c96415, 0x94d119067e19b, 0x264443ebea1f0, 0x43cbba5e93f26, 0x0442134c85096},
};

/* the equation's constant and the base point */
static const uint64_t ec_b[] = {0xe3c3e27d2604b, 0xb0cc53b0f63bc, 0x69886bc651d06, 0x93e7b3ebbd557,
                                0x05ac635d8aa3a};
static const uint64_t ec_gx[] = {0x13945d898c296, 0x812deb33a0f4a, 0x3a440f277037d, 0x4247f8bce6e56,
                                 0x06b17d1f2e12c};
static const uint64_t ec_gy[] = {0x6406837bf51f5, 0x576b315ececbb, 0xc0f9e162bce33, 0x7f9b8ee7eb4a7,
                                 0x04fe342e2fe1a};

/* t += q (2^256 - p) = q (2^224 - 2^192 - 2^96 + 1) */
KH_INLINE void ec_fold(kh_vec *t, kh_vec q)
{
    t[0] += q;
    t[1] -= q << 44;
    t[3] -= q << 36;
    t[4] += q << 16;
}

#include "ecdsa.h"
