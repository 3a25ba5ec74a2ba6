/* Numbers of 16 bits as others of 16 bits. */

#include "kernels.h"

#define RUN 64 /* few enough that most runs hold normal numbers alone */

/* The magnitudes that cast exactly, from `low` to `high`, all to (magnitude << shift) - less;
 * none where `high` is below. */
struct range {
    int32_t low, high, shift, less;
};

INLINE int in_range(const any16 *numbers, ptrdiff_t count, const struct range *range, any16 *out) {
    uint16_t low = (uint16_t)range->low, width = (uint16_t)(range->high - range->low);
    uint16_t less = (uint16_t)range->less, beyond = 0;
    int shift = range->shift;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint16_t bits = numbers[i], magnitude = bits & 0x7fff;
        beyond |= (uint16_t)(magnitude - low) > width;
        out[i] = (uint16_t)((uint16_t)((magnitude << shift) - less) | (bits & 0x8000));
    }
    return !beyond;
}

/* Casts runs, so few that four counts of 16 bits hold what was done. */
INLINE uint64_t cast_runs(const any16 *numbers, ptrdiff_t count, const uint32_t *table,
                          const struct range *range, any16 *out) {
    uint64_t held = 0;
    for (ptrdiff_t first = 0; first < count; first += RUN, numbers += RUN, out += RUN) {
        ptrdiff_t part = count - first < RUN ? count - first : RUN;
        if (range->low <= range->high && (part == RUN ? in_range(numbers, RUN, range, out)
                                                      : in_range(numbers, part, range, out)))
            continue;
        for (ptrdiff_t i = 0; i < part; i++) {
            uint32_t found = table[numbers[i]];
            out[i] = (uint16_t)found;
            held += (uint64_t)1 << (found >> 16) * 16;
        }
    }
    return held;
}

/* The table holds for each of the 65,536 numbers what it becomes and, above that, what this does to
 * it, of which `effects` counts the last three of four kinds. */
FAST EXPORT void ckptforge_cast(const void *numbers, ptrdiff_t count, const uint32_t *table,
                                const struct range *range, void *out, int64_t *effects) {
    const any16 *from = numbers;
    any16 *to = out;
    for (ptrdiff_t part; count > 0; count -= part, from += part, to += part) {
        part = count < 0x8000 ? count : 0x8000;
        uint64_t held = cast_runs(from, part, table, range, to);
        for (int kind = 1; kind < 4; kind++)
            effects[kind] += held >> kind * 16 & 0xffff;
    }
}
