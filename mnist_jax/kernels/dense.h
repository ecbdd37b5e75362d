// Dense layers: output[example][feature] = sum over inputs of x[example][input] * kernel[input][feature] + bias.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, inputs, features;
    const float *x, *kernel, *bias;
    const float *gradient,
        *relu_output;  // the gradient and the value of the output; relu_output is NULL without a ReLU
    int relu;
    float* result;
} Dense;

// Computes the output from x, kernel, bias and relu.
void dense_forward(XLA_FFI_CallFrame* frame, Dense layer);

// Computes the gradient of x from gradient, relu_output and kernel.
void dense_input_gradient(XLA_FFI_CallFrame* frame, Dense layer);

// Computes the gradients of the kernel (the result) and of the bias from x, gradient and relu_output.
void dense_kernel_gradient(XLA_FFI_CallFrame* frame, Dense layer, float* bias_gradient);
