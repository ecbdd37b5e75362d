// Max pooling of windows of 2x2 pixels; a last odd row or column is left out. What is read and what is written do not
// overlap: the compiler is told so, since to find it out again for each pixel would cost more than the pixel.

#pragma once
#include "product.h"
#include "threads.h"

typedef struct {
    Size height, width, channels;
    const float *image, *gradient;
    float* result;
} Pool;

// Of two numbers, one that is none if there is such a one.
static inline float larger(float a, float b) { return a > b || a != a ? a : b; }

// The largest values of example `n`.
static void pool_example(const void* given, Size n) {
    Pool p = *(const Pool*)given;
    Size size = p.height * p.width * p.channels;
    float* restrict to = p.result + n * (p.height / 2) * (p.width / 2) * p.channels;
    for (Size y = 0; y + 1 < p.height; y += 2)
        for (Size x = 0; x + 1 < p.width; x += 2, to += p.channels) {
            const float* restrict left = p.image + n * size + (y * p.width + x) * p.channels;
            const float *right = left + p.channels, *low_left = left + p.width * p.channels;
            const float* low_right = low_left + p.channels;
#pragma clang loop vectorize(assume_safety)
            for (Size c = 0; c < p.channels; c++) {
                to[c] = larger(larger(left[c], right[c]), larger(low_left[c], low_right[c]));
            }
        }
}

// The share of `a` in the gradient of the larger of a and b.
static inline float share(float a, float b) { return a > b ? 1 : a == b ? 0.5f : 0; }

// The gradient of the image of example `n`.
static void pool_example_gradient(const void* given, Size n) {
    Pool p = *(const Pool*)given;
    Size size = p.height * p.width * p.channels, line = p.width * p.channels;
    const float* restrict gradient = p.gradient + n * (p.height / 2) * (p.width / 2) * p.channels;
    if (p.height % 2 || p.width % 2) memset(p.result + n * size, 0, size * sizeof(float));
    for (Size y = 0; y + 1 < p.height; y += 2)
        for (Size x = 0; x + 1 < p.width; x += 2, gradient += p.channels) {
            const float* restrict image = p.image + n * size + y * line + x * p.channels;
            float* restrict to = p.result + n * size + y * line + x * p.channels;
#pragma clang loop vectorize(assume_safety)
            for (Size c = 0; c < p.channels; c++) {
                float a = image[c], b = image[c + p.channels], d = image[c + line], e = image[c + line + p.channels];
                float of_high = share(larger(a, b), larger(d, e)) * gradient[c], of_low = gradient[c] - of_high;
                to[c] = share(a, b) * of_high;
                to[c + p.channels] = share(b, a) * of_high;
                to[c + line] = share(d, e) * of_low;
                to[c + line + p.channels] = share(e, d) * of_low;
            }
        }
}
