// Functions of the rows of a matrix: standardization, as in layer and group normalization, and softmax. Sums have 16
// partial sums, of every 16th term each, which are then added as a binary tree.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t rows, columns;
    float epsilon;
    const float *x, *gradient;  // For softmax, x is its output if there is a gradient.
    float* result;
} Rows;

// Computes (x - mean) / sqrt(variance + epsilon) of each row.
void standardize(XLA_FFI_CallFrame* frame, Rows r);

// Computes the gradient of x from x and gradient.
void standardize_gradient(XLA_FFI_CallFrame* frame, Rows r);

// Computes e^x divided by its sum over the row.
void softmax(XLA_FFI_CallFrame* frame, Rows r);

// Computes the gradient of the input of softmax from its output and the gradient of its output.
void softmax_gradient(XLA_FFI_CallFrame* frame, Rows r);
