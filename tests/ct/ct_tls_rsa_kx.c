/* SPDX-License-Identifier: Apache-2.0 */
/*
 * M9: the judgement of a decrypted premaster secret branches on nothing secret and uses nothing secret as an
 * address. Run under valgrind: the decrypted block, the verdict on the ciphertext and the random bytes are
 * marked undefined, and memcheck reports each branch and address that depends on them. A control that does
 * branch must be reported.
 */
#include "rsakx.h"

#include <stdio.h>
#include <string.h>
#include <valgrind/memcheck.h>

#define LEN 256

static volatile bool sink;

/* What must not be written: it ends at the first fault. */
static __attribute__((noinline)) bool leaky(const uint8_t *block, size_t len)
{
    for (size_t i = 2; i < len; i++) {
        if (block[i] == 0) {
            return i == len - KH_PREMASTER_LEN - 1;
        }
    }
    return false;
}

static void make_block(uint8_t block[LEN], unsigned kind)
{
    memset(block, 0x5f, LEN);
    block[0] = 0;
    block[1] = 2;
    block[LEN - 49] = 0;
    block[LEN - 48] = block[LEN - 47] = 3;
    switch (kind) {
    case 1:
        block[0] = 1;
        break;
    case 2:
        block[1] = 1;
        break;
    case 3:
        block[2] = 0;
        break;
    case 4:
        block[LEN - 50] = 0;
        break;
    case 5:
        block[LEN - 49] = 7;
        break;
    case 6:
        block[LEN - 48] = 2;
        break;
    case 7:
        block[LEN - 47] = 0xff;
        break;
    case 8:
        memset(block, 0, LEN);
        break;
    case 9:
        memset(block, 0xff, LEN);
        break;
    default:
        break;
    }
}

int main(void)
{
    uint8_t block[LEN], random[KH_PREMASTER_LEN], out[KH_PREMASTER_LEN];
    unsigned wrong = 0, reports = 0, before = 0;

    if (!RUNNING_ON_VALGRIND) {
        fprintf(stderr, "M9: run me under valgrind\n");
        return 1;
    }
    for (unsigned kind = 0; kind < 10; kind++) {
        for (unsigned usable = 0; usable < 2; usable++) {
            bool secret_usable = usable != 0;

            make_block(block, kind);
            memset(random, 0xa5, sizeof(random));
            VALGRIND_MAKE_MEM_UNDEFINED(block, sizeof(block));
            VALGRIND_MAKE_MEM_UNDEFINED(random, sizeof(random));
            VALGRIND_MAKE_MEM_UNDEFINED(&secret_usable, sizeof(secret_usable));
            before = VALGRIND_COUNT_ERRORS;
            kh_rsakx_select(block, LEN, 0x0303, secret_usable, random, out);
            reports += VALGRIND_COUNT_ERRORS - before;
            VALGRIND_MAKE_MEM_DEFINED(block, sizeof(block));
            VALGRIND_MAKE_MEM_DEFINED(random, sizeof(random));
            VALGRIND_MAKE_MEM_DEFINED(out, sizeof(out));
            wrong += memcmp(out, kind == 0 && usable ? block + LEN - 48 : random, sizeof(out)) != 0;
        }
    }
    make_block(block, 0);
    VALGRIND_MAKE_MEM_UNDEFINED(block, sizeof(block));
    before = VALGRIND_COUNT_ERRORS;
    sink = leaky(block, LEN);
    printf("M9: tls-rsa-kx: %u reports, %u wrong results, control reported %s\n", reports, wrong,
           VALGRIND_COUNT_ERRORS > before ? "yes" : "NO");
    return reports == 0 && wrong == 0 && VALGRIND_COUNT_ERRORS > before ? 0 : 1;
}
