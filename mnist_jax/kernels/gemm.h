// The matrix product that every layer is built on, and the packing of its operands.
//
// gemm_tile is a micro-kernel in the sense of GotoBLAS and BLIS: it computes an MR x NR tile of the product. Packing
// copies NR columns of the right operand into consecutive memory, row by row, in the order in which the micro-kernel
// reads them.

#pragma once
#include "simd.h"

// The dimension that a product sums over, as two nested loops. A dense layer needs only the inner one. A convolution
// steps through rows and columns of an image, so its patches are read in place (no im2col).
typedef struct {
    dim_t outer_count, inner_count;
    dim_t inner_stride, outer_stride;  // floats between the terms of the left operand
    int continued;                     // whether the sums continue those in the output, and do not start from 0
} Reduction;

// c[i][j] = sum over k of a[i][k] * b[k][j], for `rows` (at most MR) rows and `cols` (at most NR) columns of a
// tile. b must be packed.
//
// One thread takes each sum in the order of k, so its bits depend neither on the threads nor on the width of the
// vectors. All MR pointers in `a` must be readable; unused rows and columns are computed too.
void gemm_tile(dim_t rows, dim_t cols, const float* const a[MR], Reduction k, const float* b, Vec c[MR][NR_VECTORS]);

// Stores a row of the output: the sums plus the bias or, with `relu`, the ReLU of that. NaN stays NaN.
static inline void store_output(const Vec sums[NR_VECTORS], const Vec bias[NR_VECTORS], int relu, dim_t cols,
                                float* dst) {
    Vec output[NR_VECTORS];
    for (int v = 0; v < NR_VECTORS; v++) {
        output[v] = sums[v] + bias[v];
        if (relu) output[v] = (Vec)((VecMask)output[v] & ~(output[v] <= 0));
    }
    store_row(output, cols, dst);
}

// Packs `count` rows, `stride` floats apart, of `cols` columns each.
void pack(const float* src, dim_t count, dim_t stride, dim_t cols, float* packed);

// Packs rows of a gradient and adds them to column_sums. If relu_output (the output of a ReLU, laid out as src) is not
// NULL, the gradient is 0 where that output is not positive.
void pack_gradient(const float* src, const float* relu_output, dim_t count, dim_t stride, dim_t cols, float* packed,
                   Vec column_sums[NR_VECTORS]);

// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows and j < cols; relu_output as in pack_gradient.
void transpose(const float* src, const float* relu_output, dim_t rows, dim_t cols, dim_t src_stride, float* dst,
               dim_t dst_stride);
