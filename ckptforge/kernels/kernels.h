/* What the kernels share.
 *
 * One pass does what takes numpy a pass for each operation. Each kernel is the arithmetic of the
 * numpy code that runs where they weren't compiled, in the same order, so that both make the same
 * bytes; only the sums that are reported are added up in another. Sizes and strides are in
 * elements; pointers may lie at any address. */

#ifndef CKPTFORGE_KERNELS_H
#define CKPTFORGE_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* One build holds the code of several processors, and takes the best when it is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define FAST
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t any16 __attribute__((aligned(1), may_alias));
typedef uint32_t any32 __attribute__((aligned(1), may_alias));
typedef uint64_t any64 __attribute__((aligned(1), may_alias));

INLINE float of_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

/* The bits of a float32: of one, or of a bfloat16, which is its upper half. */
INLINE uint32_t load(const void *numbers, ptrdiff_t at, int wide) {
    return wide ? ((const any32 *)numbers)[at] : (uint32_t)((const any16 *)numbers)[at] << 16;
}

#endif
