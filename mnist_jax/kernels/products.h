// Products of many small matrices, as in attention.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t count, rows, terms, columns;
    const float *a, *b;  // count x rows x terms, and count x terms x columns
    float* result;       // count x rows x columns
} Products;

void multiply_matrices(XLA_FFI_CallFrame* frame, Products p);
