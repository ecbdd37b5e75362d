// The parts of batch normalization that visit every pixel: moments per channel, and scale, shift and ReLU.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, height, width, channels;
    const float *x, *mask, *factor, *shift, *gradient;  // mask: one per example; factor and shift: one per channel
    float* result;
} BatchNorm;

// Computes the sums of x and of its squares per channel from x and mask.
void moments(XLA_FFI_CallFrame* frame, BatchNorm norm, float* sum, float* sum_of_squares);

// Computes max(x * factor + shift, 0) from x, factor and shift. NaN stays NaN.
void scale_relu(XLA_FFI_CallFrame* frame, BatchNorm norm);

// Computes the gradients of x (the result), factor and shift from x, factor, shift and gradient.
void scale_relu_gradient(XLA_FFI_CallFrame* frame, BatchNorm norm, float* factor_gradient, float* shift_gradient);
