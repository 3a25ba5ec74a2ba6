/* `turn.c` for numbers of one TYPE, N of which make 16 bytes; included once for each. */

#define SIZE ((ptrdiff_t)sizeof(TYPE))
#define line NAME(line)

typedef TYPE line __attribute__((vector_size(16)));

/* A square of N lines: interleaving the first half of them with the second, as often as N has
 * factors of two, makes lines of columns. */
INLINE void NAME(square)(const char *source, ptrdiff_t column, char *target, ptrdiff_t row) {
    line lines[N], turned[N];
    for (int i = 0; i < N; i++)
        memcpy(&lines[i], source + i * column * SIZE, sizeof lines[i]);
    for (int step = 1; step < N; step *= 2) {
        for (int i = 0; i < N / 2; i++) {
            turned[2 * i] = LOW(lines[i], lines[i + N / 2]);
            turned[2 * i + 1] = HIGH(lines[i], lines[i + N / 2]);
        }
        memcpy(lines, turned, sizeof lines);
    }
    for (int i = 0; i < N; i++)
        memcpy(target + i * row * SIZE, &lines[i], sizeof lines[i]);
}

/* Squares, in blocks whose pages a processor knows the addresses of; numbers at the edges one by
 * one. */
INLINE void NAME(turn)(const char *source, ptrdiff_t column, char *target, ptrdiff_t row,
                       ptrdiff_t rows, ptrdiff_t columns) {
    ptrdiff_t high = rows / N * N, broad = columns / N * N, tall = TALL / SIZE;
    for (ptrdiff_t c0 = 0; c0 < broad; c0 += WIDE)
        for (ptrdiff_t r0 = 0; r0 < high; r0 += tall)
            for (ptrdiff_t c = c0; c < broad && c < c0 + WIDE; c += N)
                for (ptrdiff_t r = r0; r < high && r < r0 + tall; r += N)
                    NAME(square)(source + (c * column + r) * SIZE, column,
                                 target + (r * row + c) * SIZE, row);
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t r = c < broad ? high : 0; r < rows; r++)
            memcpy(target + (r * row + c) * SIZE, source + (c * column + r) * SIZE, sizeof(TYPE));
}

#undef TYPE
#undef N
#undef LOW
#undef HIGH
#undef NAME
#undef SIZE
#undef line
