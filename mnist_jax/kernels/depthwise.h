// Depthwise convolutions: every channel has a kernel of its own.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, height, width, channels;  // of the image
    dim_t kernel_height, kernel_width;
    dim_t output_height, output_width;
    dim_t stride, top, left;  // top, left: rows and columns of padding before the image
    const float *image, *kernel, *bias, *gradient;
    float* result;
    int relu;  // whether the output is the ReLU
} Depthwise;

// Computes the output from image, kernel and bias.
void depthwise(XLA_FFI_CallFrame* frame, Depthwise d);

// Computes the gradient of the image from gradient (that of the output) and kernel.
void depthwise_image_gradient(XLA_FFI_CallFrame* frame, Depthwise d);

// Computes the gradients of the kernel (the result) and of the bias from image and gradient. Sums are taken over the
// pixels of an example, then over the examples in order.
void depthwise_kernel_gradient(XLA_FFI_CallFrame* frame, Depthwise d, float* bias_gradient);
