// Convolutions with stride 1 as matrix products whose left operand is read in place from a zero-padded image:
//
//   output:          [pixel][feature] = sum over taps   of image[pixel + tap] * kernel[tap][feature]
//   kernel gradient: [tap][feature]   = sum over pixels of image[pixel + tap] * gradient[pixel][feature]
//   image gradient:  the convolution of the output's gradient with the flipped kernel
//
// A tap is one row, column and channel of the kernel. Images are NHWC, kernels HWIO.

#pragma once
#include <stdint.h>

#include "simd.h"
#include "xla/ffi/api/c_api.h"

typedef struct {
    dim_t examples, height, width, channels, features, kernel_height, kernel_width, out_height, out_width;
    dim_t pixels, taps;  // pixels of one output image; kernel_height * kernel_width * channels
    dim_t padded_width, padded_size, pad_top, pad_left;  // padded_size: floats of one padded image
    dim_t work;                                          // multiply-adds of the whole batch
} ConvShape;

// Derives the padding from the three shapes. If the total padding is odd, the smaller half comes first, as in XLA's
// 'SAME'. For the image gradient (`flipped`), the larger half comes first.
ConvShape conv_shape(const int64_t* image, const int64_t* kernel, const int64_t* output, int flipped);

// Computes the output (flipped = 0), or the image gradient (flipped = 1), for which `image` is the gradient of the
// output and `features` are the channels of the original image. If relu_output is not NULL, `image` counts as 0 where
// relu_output is not positive. bias may be NULL.
void convolve(XLA_FFI_CallFrame* frame, ConvShape shape, const float* image, const float* relu_output,
              const float* kernel, int flipped, const float* bias, int relu, float* output);

// Computes the gradients of the kernel and of the bias. relu_output is NULL if the layer has no ReLU.
void convolution_gradient(XLA_FFI_CallFrame* frame, ConvShape shape, const float* image, const float* gradient,
                          const float* relu_output, float* kernel_gradient, float* bias_gradient);

// Returns the zero-padded image: `image` itself if there is nothing to pad or mask, else a copy in `padded`.
const float* pad(const float* image, const float* relu_output, ConvShape shape, float* restrict padded);

// Packs `cols` features of the kernel, starting with first_feature. A flipped kernel maps features to channels, and its
// positions are in reverse order.
void pack_kernel(const float* kernel, ConvShape shape, dim_t first_feature, dim_t cols, int flipped, float* packed);
