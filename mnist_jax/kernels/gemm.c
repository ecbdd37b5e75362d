#include "gemm.h"

// How the terms of a row of the left operand lie in memory. ADJACENT: those of the MR rows are adjacent,
// a[i] == a[0] + i. CONSECUTIVE: the terms of a row are, so the steps of an unrolled loop are constants.
typedef enum { ANYWHERE, CONSECUTIVE, ADJACENT } Layout;

enum { UNROLLED = 4 };  // terms per pass of the inner loop

// Adds `terms` terms, the number of which is a constant.
static inline __attribute__((always_inline)) void add_terms(int rows, int vectors, Layout layout, int terms,
                                                            const float* const a[MR], dim_t offset, dim_t stride,
                                                            const float* b, Vec sum[MR][NR_VECTORS]) {
#pragma clang loop unroll(full)
    for (int term = 0; term < terms; term++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
            for (int v = 0; v < vectors; v++)
                sum[i][v] += (layout == ADJACENT ? a[0][offset + i] : a[i][offset]) * *(const Vec*)&b[v * LANES];
        offset += layout == CONSECUTIVE ? 1 : stride;
        b += NR;
    }
}

// rows, vectors and layout are compile-time constants in every call, so each call becomes its own unrolled loop.
static inline __attribute__((always_inline)) void micro_kernel(int rows, int vectors, Layout layout,
                                                               const float* const a[MR], Reduction k, const float* b,
                                                               Vec c[MR][NR_VECTORS]) {
    const float* row[MR];
    for (int i = 0; i < rows; i++) row[i] = a[i];
    Vec sum[MR][NR_VECTORS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = k.continued ? c[i][v] : (Vec){0};
    for (dim_t outer = 0; outer < k.outer_count; outer++) {
        dim_t offset = outer * k.outer_stride, count = k.inner_count;
        // Keep the pointers in registers: the compiler would load each of them again for every term.
        for (int i = 0; i < (layout == ADJACENT ? 1 : rows); i++) __asm__("" : "+r"(row[i]));
        for (; layout == CONSECUTIVE && count >= UNROLLED; count -= UNROLLED, b += UNROLLED * NR) {
            // Hide from the compiler how the offset advances. It would otherwise advance MR pointers, which spill.
            __asm__("" : "+r"(offset));
            add_terms(rows, vectors, layout, UNROLLED, row, offset, k.inner_stride, b, sum);
            offset += UNROLLED;
        }
        for (; count > 0; count--, b += NR) {
            __asm__("" : "+r"(offset));
            add_terms(rows, vectors, layout, 1, row, offset, k.inner_stride, b, sum);
            offset += layout == CONSECUTIVE ? 1 : k.inner_stride;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) c[i][v] = sum[i][v];
}

void gemm_tile(dim_t rows, dim_t cols, const float* const a[MR], Reduction k, const float* b, Vec c[MR][NR_VECTORS]) {
    int few_rows = rows <= MR / 2, few_cols = cols <= NR / 2;
    int adjacent = rows == MR && a[MR - 1] - a[0] == MR - 1;
    if (few_rows && few_cols) {
        micro_kernel(MR / 2, NR_VECTORS / 2, ANYWHERE, a, k, b, c);
    } else if (few_rows) {
        micro_kernel(MR / 2, NR_VECTORS, ANYWHERE, a, k, b, c);
    } else if (few_cols) {
        micro_kernel(MR, NR_VECTORS / 2, ANYWHERE, a, k, b, c);
    } else if (adjacent) {
        micro_kernel(MR, NR_VECTORS, ADJACENT, a, k, b, c);
    } else if (k.inner_stride == 1) {
        micro_kernel(MR, NR_VECTORS, CONSECUTIVE, a, k, b, c);
    } else {
        micro_kernel(MR, NR_VECTORS, ANYWHERE, a, k, b, c);
    }
}

void pack(const float* src, dim_t count, dim_t stride, dim_t cols, float* packed) {
    for (dim_t row = 0; row < count; row++, src += stride, packed += NR) {
        __builtin_prefetch(src + 16 * stride);
        load_row(src, cols, (Vec*)packed);
    }
}

void pack_gradient(const float* src, const float* relu_output, dim_t count, dim_t stride, dim_t cols, float* packed,
                   Vec column_sums[NR_VECTORS]) {
    for (dim_t row = 0; row < count; row++, packed += NR) {
        Vec gradient[NR_VECTORS], output[NR_VECTORS];
        load_row(src + row * stride, cols, gradient);
        if (relu_output != NULL) load_row(relu_output + row * stride, cols, output);
        for (int v = 0; v < NR_VECTORS; v++) {
            if (relu_output != NULL) gradient[v] = (Vec)((VecMask)gradient[v] & (output[v] > 0));
            column_sums[v] += gradient[v];
            ((Vec*)packed)[v] = gradient[v];
        }
    }
}

static inline void load_4x4(const float* src, const float* relu_output, dim_t stride, Vec4 block[4]) {
    for (int i = 0; i < 4; i++) {
        block[i] = *(const Vec4Unaligned*)&src[i * stride];
        if (relu_output != NULL) {
            Vec4 output = *(const Vec4Unaligned*)&relu_output[i * stride];
            block[i] = (Vec4)((Vec4Mask)block[i] & (output > 0));
        }
    }
}

static inline void store_4x4_transposed(const Vec4 block[4], float* dst, dim_t stride) {
    Vec4 low01 = __builtin_shufflevector(block[0], block[1], 0, 4, 1, 5);
    Vec4 low23 = __builtin_shufflevector(block[2], block[3], 0, 4, 1, 5);
    Vec4 high01 = __builtin_shufflevector(block[0], block[1], 2, 6, 3, 7);
    Vec4 high23 = __builtin_shufflevector(block[2], block[3], 2, 6, 3, 7);
    *(Vec4Unaligned*)&dst[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    *(Vec4Unaligned*)&dst[stride] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    *(Vec4Unaligned*)&dst[2 * stride] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    *(Vec4Unaligned*)&dst[3 * stride] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

void transpose(const float* src, const float* relu_output, dim_t rows, dim_t cols, dim_t src_stride, float* dst,
               dim_t dst_stride) {
    // Use each cache line of a row completely before moving on: rows can evict each other from the cache.
    for (dim_t first_col = 0; first_col < cols; first_col += 16) {
        dim_t end = min(first_col + 16, cols);
        for (dim_t row = 0; row < rows; row += 4) {
            dim_t col = first_col;
            for (; row + 4 <= rows && col + 4 <= end; col += 4) {
                Vec4 block[4];
                dim_t offset = row * src_stride + col;
                load_4x4(src + offset, relu_output ? relu_output + offset : NULL, src_stride, block);
                store_4x4_transposed(block, dst + col * dst_stride + row, dst_stride);
            }
            for (; col < end; col++) {
                for (dim_t i = row; i < min(row + 4, rows); i++) {
                    int passes = relu_output == NULL || relu_output[i * src_stride + col] > 0;
                    dst[col * dst_stride + i] = passes ? src[i * src_stride + col] : 0;
                }
            }
        }
    }
}
