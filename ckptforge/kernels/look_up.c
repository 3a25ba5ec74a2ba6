/* What each code stands for in its block. */

#include "kernels.h"

INLINE void look_up(const uint8_t *codes, ptrdiff_t count, const uint32_t *table, any16 *made,
                    int64_t *effects) {
    while (count > 0) {
        ptrdiff_t part = count < 0x8000 ? count : 0x8000;
        uint64_t held = 0; /* four counts of 16 bits */
        for (ptrdiff_t i = 0; i < part; i++) {
            uint32_t found = table[codes[i]];
            made[i] = (uint16_t)found;
            held += (uint64_t)1 << (found >> 16) * 16;
        }
        for (int kind = 0; kind < 4; kind++)
            effects[kind] += held >> kind * 16 & 0xffff;
        codes += part, made += part, count -= part;
    }
}

/* Looks up codes of `rows` rows and `columns` columns. The table holds 256 entries for each of
 * `across` blocks in each row of blocks: a number's 16 bits and, above them, what was done to it,
 * of which `effects` counts the four kinds. `lines` are the rows of blocks, `blocks` the blocks of
 * columns. */
EXPORT void ckptforge_look_up(const uint8_t *codes, ptrdiff_t rows, ptrdiff_t columns,
                              const ptrdiff_t *lines, const ptrdiff_t *blocks, ptrdiff_t across,
                              const uint32_t *table, void *out, int64_t *effects) {
    for (ptrdiff_t r = 0; r < rows; r++, codes += columns) {
        any16 *made = (any16 *)out + r * columns;
        for (ptrdiff_t first = 0, last; first < columns; first = last) {
            const uint32_t *own = table + (lines[r] * across + blocks[first]) * 256;
            for (last = first + 1; last < columns && blocks[last] == blocks[first]; last++)
                ;
            look_up(codes + first, last - first, own, made + first, effects);
        }
    }
}
