// Vectors of floats as wide as the registers of the target CPU, and the size of the register tile built from them.

#pragma once
#include <stddef.h>

// Sizes and indices. Signed, so that differences are well defined.
typedef ptrdiff_t dim_t;

// The results do not depend on the width; the tests set others than that of the processor.
#ifndef VECTOR_BITS
#if defined(__AVX512F__)
#define VECTOR_BITS 512
#elif defined(__AVX__)
#define VECTOR_BITS 256
#else
#define VECTOR_BITS 128
#endif
#endif

// The micro-kernel in gemm.c accumulates an MR x NR tile of the product in registers: 16 of the 32 registers of
// AVX-512 (with 24, the compiler spills some, and the product takes 3 times as long), 12 of the 16 of AVX, 24 of the 32
// of NEON.
#if VECTOR_BITS == 512
enum { LANES = 16, NR_VECTORS = 2, MR = 8 };
#elif VECTOR_BITS == 256
enum { LANES = 8, NR_VECTORS = 2, MR = 6 };
#else
enum { LANES = 4, NR_VECTORS = 4, MR = 6 };
#endif
enum { NR = NR_VECTORS * LANES };

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float VecUnaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int VecMask __attribute__((vector_size(4 * LANES)));

typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec4Unaligned __attribute__((vector_size(16), aligned(4)));
typedef int Vec4Mask __attribute__((vector_size(16)));

static inline dim_t min(dim_t a, dim_t b) { return a < b ? a : b; }

static inline dim_t max(dim_t a, dim_t b) { return a > b ? a : b; }

// max(a, b); NaN if either is NaN.
static inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

static inline dim_t ceil_div(dim_t a, dim_t b) { return (a + b - 1) / b; }

// Loads `cols` floats and fills the rest of dst with zeros.
static inline void load_row(const float* src, dim_t cols, Vec dst[NR_VECTORS]) {
    if (cols == NR) {
        for (int v = 0; v < NR_VECTORS; v++) dst[v] = *(const VecUnaligned*)&src[v * LANES];
    } else {
        for (dim_t j = 0; j < NR; j++) ((float*)dst)[j] = j < cols ? src[j] : 0;
    }
}

// Stores the first `cols` of NR floats.
static inline void store_row(const Vec src[NR_VECTORS], dim_t cols, float* dst) {
    if (cols == NR) {
        for (int v = 0; v < NR_VECTORS; v++) *(VecUnaligned*)&dst[v * LANES] = src[v];
    } else {
        for (dim_t j = 0; j < cols; j++) dst[j] = ((const float*)src)[j];
    }
}
