// Max pooling of 2 x 2 windows with stride 2. An odd last row or column is ignored, as with 'VALID' padding.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, height, width, channels;
    const float *image, *gradient;  // gradient: of the pooled image
    float* result;
} MaxPool;

// Computes the pooled image from image. NaN if any value of a window is NaN.
void max_pool_forward(XLA_FFI_CallFrame* frame, MaxPool pool);

// Computes the gradient of the image from image and gradient. Equal maxima share the gradient.
void max_pool_gradient(XLA_FFI_CallFrame* frame, MaxPool pool);
