// The matrix product that all layers are, for the vectors of this processor, and how its operands are laid out.

#pragma once
#include <stddef.h>

// Of the C library, whose headers a machine without a compiler of its own may not have.
void* aligned_alloc(size_t alignment, size_t size);
void free(void* memory);
void* memcpy(void* to, const void* from, size_t size);
void* memset(void* to, int value, size_t size);

#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 2, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2, ROWS = 6 };
#else
enum { LANES = 4, VECTORS = 4, ROWS = 6 };
#endif
enum { BLOCK = VECTORS * LANES };  // columns that are computed together

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int Mask __attribute__((vector_size(4 * LANES)));
typedef ptrdiff_t Size;

static inline Size smaller(Size a, Size b) { return a < b ? a : b; }

static inline Size ratio_up(Size a, Size b) { return (a + b - 1) / b; }

// The terms of a sum: `runs` runs of `length` floats each, `step` floats apart; `jump` floats from run to run.
typedef struct {
    Size runs, length, step, jump;
} Terms;

// `near`: the rows lie side by side, left[i] == left[0] + i.
static inline __attribute__((always_inline)) void multiply_tile(int rows, int vectors, int near,
                                                                const float* const left[ROWS], Terms terms,
                                                                const float* right, Vector total[ROWS][VECTORS]) {
    Vector sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = total[i][v];
    for (Size run = 0; run < terms.runs; run++) {
        Size place = run * terms.jump;
        for (Size t = 0; t < terms.length; t++, place += terms.step, right += BLOCK) {
            // The compiler must not know how the place moves: it would move each row's pointer instead, in memory.
            __asm__("" : "+r"(place));
#pragma clang loop unroll(full)
            for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
                for (int v = 0; v < vectors; v++)
                    sum[i][v] += (near ? left[0][place + i] : left[i][place]) * *(const Vector*)&right[v * LANES];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) total[i][v] = sum[i][v];
}

// total[i][j] += sum over the terms t of left[i][t] * right[t][j], for `rows` rows i, at rising places, and `width` of
// BLOCK columns j. The sums stay in registers, and each is taken in the order of its terms, whatever the width of the
// vectors. All of ROWS rows are read, and those that are not wanted ignored.
static void multiply(Size rows, Size width, const float* const left[ROWS], Terms terms, const float* right,
                     Vector total[ROWS][VECTORS]) {
    int half = rows <= ROWS / 2, narrow = width <= BLOCK / 2;
    int near = rows == ROWS && left[ROWS - 1] - left[0] == ROWS - 1;
    if (half && narrow) multiply_tile(ROWS / 2, VECTORS / 2, 0, left, terms, right, total);
    else if (half) multiply_tile(ROWS / 2, VECTORS, 0, left, terms, right, total);
    else if (narrow) multiply_tile(ROWS, VECTORS / 2, 0, left, terms, right, total);
    else if (near) multiply_tile(ROWS, VECTORS, 1, left, terms, right, total);
    else multiply_tile(ROWS, VECTORS, 0, left, terms, right, total);
}

// BLOCK floats, or the `width` of them that there are and zeros.
static inline void load(const float* from, Size width, Vector to[VECTORS]) {
    if (width == BLOCK) {
        for (int v = 0; v < VECTORS; v++) to[v] = *(const Unaligned*)&from[v * LANES];
    } else {
        for (Size j = 0; j < BLOCK; j++) ((float*)to)[j] = j < width ? from[j] : 0;
    }
}

static inline void store(const Vector from[VECTORS], Size width, float* to) {
    if (width == BLOCK) {
        for (int v = 0; v < VECTORS; v++) *(Unaligned*)&to[v * LANES] = from[v];
    } else {
        for (Size j = 0; j < width; j++) to[j] = ((const float*)from)[j];
    }
}

// Store the sums plus the bias or, with `relu`, what of that is not below zero: a number that is none stays one.
static inline void store_output(const Vector sum[VECTORS], const Vector bias[VECTORS], int relu, Size width, float* to) {
    Vector output[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        output[v] = sum[v] + bias[v];
        if (relu) output[v] = (Vector)((Mask)output[v] & ~(output[v] <= 0));
    }
    store(output, width, to);
}

// Lay out `count` rows, `stride` floats apart, one after the other.
static inline void pack(const float* rows, Size count, Size stride, Size width, float* packed) {
    for (Size row = 0; row < count; row++, rows += stride, packed += BLOCK) {
        __builtin_prefetch(rows + 16 * stride);
        load(rows, width, (Vector*)packed);
    }
}

// The same for rows of a gradient, and add them up in `total`. Where `active` is given, the output of a ReLU, the
// gradient passes where that is above zero.
static inline void pack_gradient(const float* rows, const float* active, Size count, Size stride, Size width,
                                 float* packed, Vector total[VECTORS]) {
    for (Size row = 0; row < count; row++, packed += BLOCK) {
        Vector now[VECTORS], output[VECTORS];
        load(rows + row * stride, width, now);
        if (active != NULL) load(active + row * stride, width, output);
        for (int v = 0; v < VECTORS; v++) {
            if (active != NULL) now[v] = (Vector)((Mask)now[v] & (output[v] > 0));
            total[v] += now[v];
            ((Vector*)packed)[v] = now[v];
        }
    }
}

typedef float Quad __attribute__((vector_size(16)));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4)));
typedef int QuadMask __attribute__((vector_size(16)));

// Four rows of four floats, `stride` apart; where `active` is given, what passes the ReLU, as in pack_gradient.
static inline void load_square(const float* from, const float* active, Size stride, Quad square[4]) {
    for (int i = 0; i < 4; i++) {
        square[i] = *(const UnalignedQuad*)&from[i * stride];
        if (active != NULL) {
            Quad output = *(const UnalignedQuad*)&active[i * stride];
            square[i] = (Quad)((QuadMask)square[i] & (output > 0));
        }
    }
}

static inline void store_transposed(const Quad s[4], float* to, Size stride) {
    Quad low01 = __builtin_shufflevector(s[0], s[1], 0, 4, 1, 5), low23 = __builtin_shufflevector(s[2], s[3], 0, 4, 1, 5);
    Quad high01 = __builtin_shufflevector(s[0], s[1], 2, 6, 3, 7);
    Quad high23 = __builtin_shufflevector(s[2], s[3], 2, 6, 3, 7);
    *(UnalignedQuad*)&to[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    *(UnalignedQuad*)&to[stride] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    *(UnalignedQuad*)&to[2 * stride] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    *(UnalignedQuad*)&to[3 * stride] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// to[j * to_stride + i] = from[i * stride + j] for i < rows and j < columns; `active` as in load_square.
static void transpose(const float* from, const float* active, Size rows, Size columns, Size stride, float* to,
                      Size to_stride) {
    for (Size j = 0; j < columns; j += 16) {  // A line of the cache is read at once: rows can push each other out.
        Size end = smaller(j + 16, columns);
        for (Size i = 0; i < rows; i += 4) {
            Size k = j;
            for (; i + 4 <= rows && k + 4 <= end; k += 4) {
                Quad square[4];
                load_square(from + i * stride + k, active ? active + i * stride + k : NULL, stride, square);
                store_transposed(square, to + k * to_stride + i, to_stride);
            }
            for (; k < end; k++)
                for (Size row = i; row < smaller(i + 4, rows); row++) {
                    int passes = active == NULL || active[row * stride + k] > 0;
                    to[k * to_stride + row] = passes ? from[row * stride + k] : 0;
                }
        }
    }
}

// Memory for so many floats that a thread keeps from call to call, since the system clears new memory each time: one for
// what the threads of a call share, one for each of them.
enum { SHARED, OWN };

static float* scratch(int which, Size floats) {
    static _Thread_local void* memory[2];
    static _Thread_local Size size[2];
    Size bytes = ratio_up(floats, 16) * 64;
    if (bytes > size[which]) {
        free(memory[which]);
        memory[which] = aligned_alloc(64, bytes);
        size[which] = bytes;
    }
    return memory[which];
}

static inline Size aligned(Size floats) { return ratio_up(floats, 16) * 16; }
