/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hooks of the test build (private.h). Not part of the product's library.
 */
#include <valgrind/memcheck.h>

#include "private.h"

kh_test_hooks kh_test;

void kh_test_fault(unsigned point, kh_vec *value, size_t len)
{
    if (!kh_test.fault_armed || point != kh_test.fault_point)
        return;
    if (kh_test.fault_skip > 0) {
        kh_test.fault_skip--;
        return;
    }
    value[kh_test.fault_limb % len][kh_test.fault_lane] ^= UINT64_C(1) << kh_test.fault_bit;
    kh_test.fault_armed = false;
    kh_test.fault_done++;
}

void kh_test_public(void *mem, size_t len)
{
    if (kh_test.valgrind)
        (void)VALGRIND_MAKE_MEM_DEFINED(mem, len);
}
