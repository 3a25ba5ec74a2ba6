/* A matrix whose columns are contiguous as one whose rows are. */

#include "kernels.h"

/* The low, and the high, halves of two lines of 16 bytes, interleaved. */
#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

#define TALL 512 /* bytes of a column, and columns, that a block has */
#define WIDE 64

#define TYPE uint8_t
#define N 16
#define LOW(a, b) SHUFFLE(line, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLE(line, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define NAME(name) name##_1
#include "turn_of.h"

#define TYPE uint16_t
#define N 8
#define LOW(a, b) SHUFFLE(line, a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLE(line, a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define NAME(name) name##_2
#include "turn_of.h"

#define TYPE uint32_t
#define N 4
#define LOW(a, b) SHUFFLE(line, a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLE(line, a, b, 2, 6, 3, 7)
#define NAME(name) name##_4
#include "turn_of.h"

#define TYPE uint64_t
#define N 2
#define LOW(a, b) SHUFFLE(line, a, b, 0, 2)
#define HIGH(a, b) SHUFFLE(line, a, b, 1, 3)
#define NAME(name) name##_8
#include "turn_of.h"

/* target[r * row + c] = source[c * column + r], of numbers of 1, 2, 4 or 8 bytes. */
EXPORT void ckptforge_turn(const char *source, ptrdiff_t column, char *target, ptrdiff_t row,
                           ptrdiff_t rows, ptrdiff_t columns, int itemsize) {
    if (itemsize == 1)
        turn_1(source, column, target, row, rows, columns);
    else if (itemsize == 2)
        turn_2(source, column, target, row, rows, columns);
    else if (itemsize == 4)
        turn_4(source, column, target, row, rows, columns);
    else
        turn_8(source, column, target, row, rows, columns);
}
