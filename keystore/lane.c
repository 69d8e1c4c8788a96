/* SPDX-License-Identifier: Apache-2.0 */
/* Lane groups: which operations may share a batch. */
#include <keyhold/keystore.h>

static const char *const lane_names[KH_LANE_COUNT] = {
#define KH_X(constant, number, name) [number] = name,
    KH_LANES(KH_X)
#undef KH_X
};

const char *kh_lane_name(int lane)
{
    return lane >= 0 && lane < KH_LANE_COUNT ? lane_names[lane] : "unknown";
}

static kh_lane rsa_lane(unsigned bits)
{
    if (bits == 0 || bits > 4096) {
        return KH_LANE_STORE;
    }
    return bits <= 2048 ? KH_LANE_RSA2048 : bits <= 3072 ? KH_LANE_RSA3072 : KH_LANE_RSA4096;
}

kh_lane kh_lane_of(int key_type, unsigned bits)
{
    switch (key_type) {
    case KH_KEY_RSA:
        return rsa_lane(bits);
    case KH_KEY_P256:
        return KH_LANE_P256;
    case KH_KEY_P384:
        return KH_LANE_P384;
    case KH_KEY_P521:
        return KH_LANE_P521;
    case KH_KEY_ED25519:
        return KH_LANE_ED25519;
    default:
        return KH_LANE_STORE;
    }
}
