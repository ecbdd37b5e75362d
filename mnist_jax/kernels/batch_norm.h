// Batch normalization: moments per channel; from these, a factor and a shift per channel; and scale, shift and
// activation.

#pragma once
#include "activation.h"
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, height, width, channels;
    const float *x, *mask, *factor, *shift, *gradient;  // mask: one per example; factor and shift: one per channel
    float* result;
} BatchNorm;

// Computes the sums of x and of its squares per channel from x and mask.
void moments(XLA_FFI_CallFrame* frame, BatchNorm norm, float* sum, float* sum_of_squares);

// Computes the gradient of x (the result) from x, mask and the gradients of the two sums.
void moments_gradient(XLA_FFI_CallFrame* frame, BatchNorm norm, const float* sum_gradient,
                      const float* squares_gradient);

// What follows from the moments of a batch of `count` pixels. All pointers are to one number per channel.
typedef struct {
    dim_t channels;
    float count, momentum, epsilon;
    const float *sum, *sum_of_squares, *scale, *bias, *moving_mean, *moving_variance;
} Normalization;

// Computes factor and shift, which normalize the batch, and the new moving averages.
void normalize(Normalization n, float* factor, float* shift, float* new_mean, float* new_variance);

// Computes the gradients of the two sums, of scale and of bias from those of factor, shift and the moving averages.
void normalize_gradient(Normalization n, const float* factor_gradient, const float* shift_gradient,
                        const float* mean_gradient, const float* variance_gradient, float* sum_gradient,
                        float* squares_gradient, float* scale_gradient, float* bias_gradient);

// Computes factor and shift from the moving averages.
void normalize_for_inference(Normalization n, float* factor, float* shift);

// Computes activation(kind, x * factor + shift) from x, factor and shift. NaN stays NaN.
void scale(XLA_FFI_CallFrame* frame, BatchNorm norm, Activation kind);

// Computes the gradients of x (the result), factor and shift from x, factor, shift and gradient.
void scale_gradient(XLA_FFI_CallFrame* frame, BatchNorm norm, Activation kind, float* factor_gradient,
                    float* shift_gradient);
