/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ECDSA on P-384 (FIPS 186-5; SP 800-186, 3.2.1.4): the curve's constants for ecdsa.h, in limbs of 52 bits,
 * lowest first. p = 2^384 - 2^128 - 2^96 + 2^32 - 1.
 */
#include <stdlib.h>

#include "field.h"

#define EC_LEN 8
#define EC_BITS 384
#define EC_BYTES 48
#define EC_WINDOWS 65
#define EC_RUN kh_p384_run
#define EC_INIT kh_p384_init
#define EC_WORK_LEN kh_p384_work_len
#define EC_ORDER_BYTES                                                                                       \
    {                                                                                                        \
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,      \
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc7, 0x63, 0x4d, 0x81, 0xf4, 0x37, 0x2d, 0xdf,  \
            0x58, 0x1a, 0x0d, 0xb2, 0x48, 0xb0, 0xa7, 0x7a, 0xec, 0xec, 0x19, 0x6a, 0xcc, 0xc5, 0x29, 0x73   \
    }

/* the field */
static const kh_modulus ec_p = {
    .n = {0x00000ffffffff, 0xff00000000000, 0xffffffeffffff, 0xfffffffffffff, 0xfffffffffffff,
          0xfffffffffffff, 0xfffffffffffff, 0x00000000fffff},
    .k0 = 0x100000001,
    .rr = {0x0000000000000, 0xfe00000001000, 0x0000000ffffff, 0x0000000000020, 0x0fffffffe0000,
           0x0000020000000, 0x0000000000100, 0x0000000000000},
    .rrr = {0x00005fffffffd, 0xfc00000000000, 0xffffffbffffff, 0x000600000008f, 0xcfffffffe0000,
            0x000005fffffff, 0xffd0000000300, 0x00000000fffff},
    .inv_fix = {0x0000fffffffd0, 0xd000000050000, 0xfffff9fffffff, 0x008fffffffcff, 0x0000000600000,
                0xffffcfffffffe, 0x0300000005fff, 0x0000000000000},
};

/* the order of the group */
static const kh_modulus ec_n = {
    .n = {0xc196accc52973, 0xb248b0a77aece, 0x4372ddf581a0d, 0xffffc7634d81f, 0xfffffffffffff,
          0xfffffffffffff, 0xfffffffffffff, 0x00000000fffff},
    .k0 = 0x46089e88fdc45,
    .rr = {0x34124f50ddb2d, 0xc974971bd0d8d, 0x2118942bfd3cc, 0x9f43be8072178, 0x5bf030606de60,
           0x0d49174aab1cc, 0xb7a28266895d4, 0x000000003fb05},
    .rrr = {0xfab24b3595fbb, 0x53c529db19181, 0xd405adad51873, 0x6d616ff0dc666, 0xf9991e8ee0b32,
            0xb48eb63b55de7, 0x17b5dbd3f41ed, 0x0000000095226},
    .inv_fix = {0xf693184ce5cb1, 0xcbad988d274df, 0xf1acde2ff01ba, 0xaa823764aa1e3, 0x0b326d6190eba,
                0x5de7f9991e8ee, 0x41edb48eb63b5, 0x00000000dbd3f},
};

/* the equation's constant and the base point */
static const uint64_t ec_b[] = {0x5c8edd3ec2aef, 0x8d8a2ed19d2a8, 0x013875ac65639, 0x41120314088f5,
                                0x9181d9c6efe81, 0x8e056be3f82d1, 0xfa7e23ee7e498, 0x00000000b3312};
static const uint64_t ec_gx[] = {0x45e3872760ab7, 0x5dbf55296c3a5, 0x2542a385502f2, 0x9b9859f741e08,
                                 0x46e1d3b628ba7, 0xb1c71ef320ad7, 0xa22be8b05378e, 0x00000000aa87c};
static const uint64_t ec_gy[] = {0x31d7c90ea0e5f, 0xce1d7e819d7a4, 0x5f0b8c00a60b1, 0x147ce9da3113b,
                                 0x9f8f41dbd289a, 0x9e98bf9292dc2, 0xe4a96262c6f5d, 0x000000003617d};

/* t += q (2^384 - p) = q (2^128 + 2^96 - 2^32 + 1) */
KH_INLINE void ec_fold(kh_vec *t, kh_vec q)
{
    t[0] += q - (q << 32);
    t[1] += q << 44;
    t[2] += q << 24;
}

#include "ecdsa.h"
