// Convolutions with 3x3 kernels and stride 1 by Winograd's minimal filtering F(2x2, 3x3), which computes 2x2 outputs
// with 16 products per channel and feature instead of 36: Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks" (2015), https://arxiv.org/abs/1509.09308.
//
// Image, kernel and output are transformed by additions only (and, for the kernel, halvings), so the result differs
// from that of the direct convolution by rounding. If an input is not finite, the same outputs are not finite.

#pragma once
#include "convolution.h"

// Whether the transforms cost less than they save. Does not depend on the processor, because the bits do.
int winograd_pays(ConvShape shape);

// Computes what `convolve` computes.
void winograd_convolve(XLA_FFI_CallFrame* frame, ConvShape shape, const float* image, const float* relu_output,
                       const float* kernel, int flipped, const float* bias, int relu, float* output);
