/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lane vector: eight unsigned 64-bit lanes, one for each of eight independent operations. All kernels
 * are written against this header and compiled once for each backend (KH_LANES_IFMA: AVX-512 IFMA;
 * otherwise portable C). Addition, shifts, logic and comparison are the compiler's own vector operators in
 * both; only the multiply-adds, the table lookup and the wiping of registers differ.
 *
 * Numbers are held in radix 2^52: VPMADD52LUQ and VPMADD52HUQ multiply the low 52 bits of each lane and add
 * the low or the high half of the product to a 64-bit lane, so 12 bits of room let carries wait (Gueron and
 * Krasnov, "Software Implementation of Modular Exponentiation, Using Advanced Vector Instructions
 * Architectures", WAIFI 2012).
 *
 * Nothing here branches or forms an address from a lane's value.
 */
#ifndef KH_KERNELS_LANES_H
#define KH_KERNELS_LANES_H

#include <stddef.h>
#include <stdint.h>
#ifdef KH_LANES_IFMA
#include <immintrin.h>
#endif

#define KH_LANES 8
#define KH_LIMB_BITS 52
#define KH_LIMB_MASK ((UINT64_C(1) << KH_LIMB_BITS) - 1)

#define KH_CAT2(a, b) a##b
#define KH_CAT(a, b) KH_CAT2(a, b)
#ifdef KH_LANES_IFMA
#define KH_FN(name) KH_CAT(name, _ifma)
#else
#define KH_FN(name) KH_CAT(name, _portable)
#endif

#define KH_INLINE static inline __attribute__((always_inline))
#define KH_NOINLINE static __attribute__((noinline))

typedef uint64_t kh_vec __attribute__((vector_size(8 * KH_LANES)));
typedef int64_t kh_svec __attribute__((vector_size(8 * KH_LANES)));

KH_INLINE kh_vec kh_vec_all(uint64_t x)
{
    return (kh_vec){x, x, x, x, x, x, x, x};
}

/* Arithmetic shift to the right, for differences that may be negative. */
#define KH_SAR(v, n) ((kh_vec)((kh_svec)(v) >> (n)))

/* All ones where a == b, else 0. */
KH_INLINE kh_vec kh_vec_eq(kh_vec a, kh_vec b)
{
    return (kh_vec)(a == b);
}

/* Lane-wise mask ? a : b; a lane of mask is 0 or all ones. */
KH_INLINE kh_vec kh_vec_select(kh_vec mask, kh_vec a, kh_vec b)
{
    return b ^ (mask & (a ^ b));
}

#ifdef KH_LANES_IFMA

/* acc + low (high) 52 bits of the 104-bit product of the low 52 bits of a and b. */
KH_INLINE kh_vec kh_madlo(kh_vec acc, kh_vec a, kh_vec b)
{
    return (kh_vec)_mm512_madd52lo_epu64((__m512i)acc, (__m512i)a, (__m512i)b);
}

KH_INLINE kh_vec kh_madhi(kh_vec acc, kh_vec a, kh_vec b)
{
    return (kh_vec)_mm512_madd52hi_epu64((__m512i)acc, (__m512i)a, (__m512i)b);
}

/* Lane i gets table[index[i] & 15]. The table lies in two registers: no address depends on the index. */
KH_INLINE kh_vec kh_vec_pick16(const kh_vec table[2], kh_vec index)
{
    return (kh_vec)_mm512_permutex2var_epi64((__m512i)table[0], (__m512i)index, (__m512i)table[1]);
}

/* A condition per lane, where mask registers save half of the work (inverse.h). */
typedef __mmask8 kh_mask;

KH_INLINE kh_mask kh_mask_odd(kh_vec a)
{
    return _mm512_test_epi64_mask((__m512i)a, _mm512_set1_epi64(1));
}

/* a > 0, signed, where m holds. */
KH_INLINE kh_mask kh_mask_positive(kh_mask m, kh_vec a)
{
    return _mm512_mask_cmpgt_epi64_mask(m, (__m512i)a, _mm512_setzero_si512());
}

/* m ? a + b : a */
KH_INLINE kh_vec kh_mask_add(kh_mask m, kh_vec a, kh_vec b)
{
    return (kh_vec)_mm512_mask_add_epi64((__m512i)a, m, (__m512i)a, (__m512i)b);
}

/* m ? a - b : c */
KH_INLINE kh_vec kh_mask_sub(kh_mask m, kh_vec a, kh_vec b, kh_vec c)
{
    return (kh_vec)_mm512_mask_sub_epi64((__m512i)c, m, (__m512i)a, (__m512i)b);
}

/* m ? a : b */
KH_INLINE kh_vec kh_mask_select(kh_mask m, kh_vec a, kh_vec b)
{
    return (kh_vec)_mm512_mask_blend_epi64(m, (__m512i)b, (__m512i)a);
}

/* Clears all vector registers (the upper sixteen by hand: VZEROALL does not reach them). */
KH_INLINE void kh_vec_wipe_registers(void)
{
    __asm__ volatile("vzeroall\n\t"
                     "vpxorq %%zmm16, %%zmm16, %%zmm16\n\tvpxorq %%zmm17, %%zmm17, %%zmm17\n\t"
                     "vpxorq %%zmm18, %%zmm18, %%zmm18\n\tvpxorq %%zmm19, %%zmm19, %%zmm19\n\t"
                     "vpxorq %%zmm20, %%zmm20, %%zmm20\n\tvpxorq %%zmm21, %%zmm21, %%zmm21\n\t"
                     "vpxorq %%zmm22, %%zmm22, %%zmm22\n\tvpxorq %%zmm23, %%zmm23, %%zmm23\n\t"
                     "vpxorq %%zmm24, %%zmm24, %%zmm24\n\tvpxorq %%zmm25, %%zmm25, %%zmm25\n\t"
                     "vpxorq %%zmm26, %%zmm26, %%zmm26\n\tvpxorq %%zmm27, %%zmm27, %%zmm27\n\t"
                     "vpxorq %%zmm28, %%zmm28, %%zmm28\n\tvpxorq %%zmm29, %%zmm29, %%zmm29\n\t"
                     "vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31"
                     :
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18",
                       "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",
                       "xmm28", "xmm29", "xmm30", "xmm31");
}

#else

KH_INLINE kh_vec kh_madlo(kh_vec acc, kh_vec a, kh_vec b)
{
    for (int i = 0; i < KH_LANES; i++)
        acc[i] += ((a[i] & KH_LIMB_MASK) * (b[i] & KH_LIMB_MASK)) & KH_LIMB_MASK;
    return acc;
}

KH_INLINE kh_vec kh_madhi(kh_vec acc, kh_vec a, kh_vec b)
{
    for (int i = 0; i < KH_LANES; i++)
        acc[i] +=
            (uint64_t)(((unsigned __int128)(a[i] & KH_LIMB_MASK) * (b[i] & KH_LIMB_MASK)) >> KH_LIMB_BITS);
    return acc;
}

KH_INLINE kh_vec kh_vec_pick16(const kh_vec table[2], kh_vec index)
{
    kh_vec r = {0};

    index &= kh_vec_all(15);
    for (unsigned e = 0; e < 16; e++)
        r |= kh_vec_all(table[e / 8][e % 8]) & kh_vec_eq(index, kh_vec_all(e));
    return r;
}

typedef kh_vec kh_mask;

KH_INLINE kh_mask kh_mask_odd(kh_vec a)
{
    return -(a & 1);
}

KH_INLINE kh_mask kh_mask_positive(kh_mask m, kh_vec a)
{
    return m & KH_SAR(-a, 63) & ~KH_SAR(a, 63);
}

KH_INLINE kh_vec kh_mask_add(kh_mask m, kh_vec a, kh_vec b)
{
    return a + (b & m);
}

KH_INLINE kh_vec kh_mask_sub(kh_mask m, kh_vec a, kh_vec b, kh_vec c)
{
    return kh_vec_select(m, a - b, c);
}

KH_INLINE kh_vec kh_mask_select(kh_mask m, kh_vec a, kh_vec b)
{
    return kh_vec_select(m, a, b);
}

/* Elsewhere than on x86-64 the caller's wiping of the stack has to do. */
KH_INLINE void kh_vec_wipe_registers(void)
{
#ifdef __x86_64__
    __asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, %%xmm2\n\t"
                     "pxor %%xmm3, %%xmm3\n\tpxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\t"
                     "pxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm8, %%xmm8\n\t"
                     "pxor %%xmm9, %%xmm9\n\tpxor %%xmm10, %%xmm10\n\tpxor %%xmm11, %%xmm11\n\t"
                     "pxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\tpxor %%xmm14, %%xmm14\n\t"
                     "pxor %%xmm15, %%xmm15"
                     :
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#endif
}

#endif
#endif
