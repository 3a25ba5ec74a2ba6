/* Blocks of numbers as codes with a scale each. */

#include "kernels.h"

INLINE void largest(const void *numbers, int wide, ptrdiff_t rows, ptrdiff_t columns,
                    ptrdiff_t stride, ptrdiff_t high, ptrdiff_t broad, float *found) {
    ptrdiff_t across = (columns + broad - 1) / broad;
    memset(found, 0, (size_t)((rows + high - 1) / high * across) * sizeof *found);
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *line = found + r / high * across;
        for (ptrdiff_t b = 0; b < across; b++) {
            ptrdiff_t end = (b + 1) * broad < columns ? (b + 1) * broad : columns;
            int32_t most = (int32_t)bits_of(line[b]);
            for (ptrdiff_t c = b * broad; c < end; c++) {
                int32_t magnitude = (int32_t)(load(numbers, r * stride + c, wide) & 0x7fffffffu);
                most = magnitude > most ? magnitude : most;
            }
            line[b] = of_bits((uint32_t)most);
        }
    }
}

/* The largest magnitude of each block of `high` rows and `broad` columns. One that holds infinities
 * or NaN has none that is finite. */
FAST EXPORT void ckptforge_largest(const void *numbers, int wide, ptrdiff_t rows, ptrdiff_t columns,
                                   ptrdiff_t stride, ptrdiff_t high, ptrdiff_t broad,
                                   float *found) {
    if (wide)
        largest(numbers, 1, rows, columns, stride, high, broad, found);
    else
        largest(numbers, 0, rows, columns, stride, high, broad, found);
}

/* How magnitudes become codes. Of a floating code: the bits that its mantissa has fewer than a
 * float32's, its smallest normal number, the lowest byte of what counts the codes up to 0, the
 * largest magnitude, and the bit of its sign. An integer code has no smallest. */
struct form {
    float smallest, cap;
    int32_t shift, least, sign;
};

/* What that did: numbers made 0, and all that were changed; squares of what changed, of the
 * numbers, and the largest quotient of both in a block. */
struct effects {
    int64_t zeros, changed;
    double error, square, worst;
};

#define RUN 512 /* numbers whose intermediate results stay in the fastest cache */

struct run {
    uint32_t bits[RUN];
    float scaled[RUN], near[RUN];
};

/* Rounds magnitudes to floating codes, without signs. */
INLINE void round_floating(struct run *run, ptrdiff_t count, const struct form *form) {
    float smallest = form->smallest, cap = form->cap, spread = (float)(1 << form->shift);
    uint32_t shift = (uint32_t)form->shift, least = (uint32_t)form->least,
             sign = (uint32_t)form->sign;
    for (ptrdiff_t i = 0; i < count; i++) {
        float scaled = run->scaled[i], within = scaled < cap ? scaled : cap;
        float step = of_bits(bits_of(scaled) & 0x7f800000u);
        /* 2 ** (shift + exponent) has the distance between two codes as that of its last bit: added
         * up with it a number is rounded, and the sum's last bits count the codes up to it. Its
         * exponent, moved to where a code has its own, counts those before. */
        step = (step > smallest ? step : smallest) * spread;
        float sum = within + step;
        run->near[i] = sum - step;
        uint32_t code = (bits_of(sum) + (bits_of(sum) >> shift) - least) & 0xffu;
        run->bits[i] = code | (run->bits[i] >> 31) * sign;
    }
}

/* Rounds magnitudes to integers. */
INLINE void round_integer(struct run *run, ptrdiff_t count) {
    const float whole = 12582912.0f; /* 1.5 * 2^23: added up with it a number is rounded */
    for (ptrdiff_t i = 0; i < count; i++) {
        run->near[i] = (run->scaled[i] + whole) - whole;
        uint32_t code = (uint32_t)(int32_t)run->near[i], negative = run->bits[i] >> 31;
        run->bits[i] = (code ^ (0u - negative)) + negative;
    }
}

INLINE void round_run(const void *numbers, ptrdiff_t at, int wide, int floating, ptrdiff_t count,
                      float scale, const struct form *form, uint8_t *codes, struct effects *block) {
    struct run run;
    for (ptrdiff_t i = 0; i < count; i++) {
        run.bits[i] = load(numbers, at + i, wide);
        run.scaled[i] = of_bits(run.bits[i] & 0x7fffffffu) / scale;
    }
    if (floating)
        round_floating(&run, count, form);
    else
        round_integer(&run, count);
    for (ptrdiff_t i = 0; i < count; i++)
        codes[i] = (uint8_t)run.bits[i];
    int32_t zeros = 0, changed = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        zeros += (run.near[i] == 0) & (run.scaled[i] != 0);
        changed += run.near[i] != run.scaled[i];
    }
    float error = 0, square = 0;
#pragma omp simd reduction(+ : error, square)
    for (ptrdiff_t i = 0; i < count; i++) {
        float missed = run.near[i] - run.scaled[i];
        error += missed * missed;
        square += run.scaled[i] * run.scaled[i];
    }
    block->zeros += zeros, block->changed += changed;
    block->error += error, block->square += square;
}

INLINE void add_block(const struct effects *block, float scale, struct effects *effects) {
    double weight = (double)scale * scale;
    effects->zeros += block->zeros, effects->changed += block->changed;
    effects->error += block->error * weight, effects->square += block->square * weight;
    if (block->square > 0 && block->error / block->square > effects->worst)
        effects->worst = block->error / block->square;
}

INLINE void round_blocks(const void *numbers, int wide, int floating, ptrdiff_t rows,
                         ptrdiff_t columns, ptrdiff_t stride, ptrdiff_t high, ptrdiff_t broad,
                         const float *scales, const struct form *form, uint8_t *codes,
                         struct effects *effects) {
    for (ptrdiff_t r0 = 0; r0 < rows; r0 += high) {
        ptrdiff_t r1 = r0 + high < rows ? r0 + high : rows;
        for (ptrdiff_t c0 = 0; c0 < columns; c0 += broad, scales++) {
            ptrdiff_t count = c0 + broad < columns ? broad : columns - c0;
            struct effects block = {0};
            for (ptrdiff_t r = r0; r < r1; r++)
                for (ptrdiff_t i = 0; i < count; i += RUN)
                    round_run(numbers, r * stride + c0 + i, wide, floating,
                              count - i < RUN ? count - i : RUN, *scales, form,
                              codes + r * columns + c0 + i, &block);
            add_block(&block, *scales, effects);
        }
    }
}

/* Fills `codes`, without gaps, with those of all numbers; adds to `effects`. All numbers are
 * finite, and none is beyond the largest code by more than rounding, but where the form has a cap.
 */
FAST EXPORT void ckptforge_round(const void *numbers, int wide, ptrdiff_t rows, ptrdiff_t columns,
                                 ptrdiff_t stride, ptrdiff_t high, ptrdiff_t broad,
                                 const float *scales, const struct form *form, uint8_t *codes,
                                 struct effects *effects) {
    int floating = form->smallest != 0;
    if (wide && floating)
        round_blocks(numbers, 1, 1, rows, columns, stride, high, broad, scales, form, codes,
                     effects);
    else if (wide)
        round_blocks(numbers, 1, 0, rows, columns, stride, high, broad, scales, form, codes,
                     effects);
    else if (floating)
        round_blocks(numbers, 0, 1, rows, columns, stride, high, broad, scales, form, codes,
                     effects);
    else
        round_blocks(numbers, 0, 0, rows, columns, stride, high, broad, scales, form, codes,
                     effects);
}
