#include "products.h"

#include "gemm.h"
#include "memory.h"
#include "parallel_for.h"

// Task: one product.
static void multiply(const void* context, dim_t index) {
    Products p = *(const Products*)context;
    const float *a = p.a + index * p.rows * p.terms, *b = p.b + index * p.terms * p.columns;
    float* result = p.result + index * p.rows * p.columns;
    float* packed = scratch(SCRATCH_LOCAL, p.terms * NR);
    Reduction terms = {.outer_count = 1, .inner_count = p.terms, .inner_stride = 1};
    for (dim_t first = 0; first < p.columns; first += NR) {
        dim_t columns = min(NR, p.columns - first);
        pack(b + first, p.terms, p.columns, columns, packed);
        for (dim_t row = 0; row < p.rows; row += MR) {
            dim_t rows = min(MR, p.rows - row);
            const float* pointers[MR];
            for (dim_t i = 0; i < MR; i++) pointers[i] = a + (row + min(i, rows - 1)) * p.terms;
            Vec sums[MR][NR_VECTORS];
            gemm_tile(rows, columns, pointers, terms, packed, sums);
            for (dim_t i = 0; i < rows; i++) store_row(sums[i], columns, result + (row + i) * p.columns + first);
        }
    }
}

void multiply_matrices(XLA_FFI_CallFrame* frame, Products p) {
    parallel_for(frame, p.count, p.count * p.rows * p.terms * p.columns, multiply, &p);
}
