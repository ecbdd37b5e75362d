// What batch normalisation does to each pixel, channel by channel; examples are shared out to the threads.

#pragma once
#include "product.h"
#include "threads.h"

typedef struct {
    Size examples, height, width, channels;
    const float *x, *mask, *factor, *shift, *gradient;
    float *result, *sums;  // sums: two for each example and channel
} Norm;

static Size size_of(Norm norm) { return norm.height * norm.width * norm.channels; }

// to[c] = sum over the examples of sums[example][which][c], in their order.
static void add_examples(Norm norm, Size which, float* restrict to) {
    memset(to, 0, norm.channels * sizeof(float));
    for (Size n = 0; n < norm.examples; n++)
        for (Size c = 0; c < norm.channels; c++) to[c] += norm.sums[(2 * n + which) * norm.channels + c];
}

// The sums of an example's pixels and of their squares, times its mask. Line by line, which rounds less.
static void moments_of_example(const void* given, Size n) {
    Norm norm = *(const Norm*)given;
    const float* restrict x = norm.x + n * size_of(norm);
    float *restrict sum = norm.sums + 2 * n * norm.channels, *restrict square = sum + norm.channels;
    float *restrict line = scratch(OWN, 2 * norm.channels), *restrict line_square = line + norm.channels;
    memset(sum, 0, 2 * norm.channels * sizeof(float));
    for (Size y = 0; y < norm.height; y++) {
        memset(line, 0, 2 * norm.channels * sizeof(float));
        for (Size i = 0; i < norm.width; i++, x += norm.channels)
            for (Size c = 0; c < norm.channels; c++) line[c] += x[c], line_square[c] += x[c] * x[c];
        for (Size c = 0; c < norm.channels; c++) sum[c] += line[c], square[c] += line_square[c];
    }
    for (Size c = 0; c < 2 * norm.channels; c++) sum[c] *= norm.mask[n];
}

static inline float scaled(float x, float factor, float shift) { return x * factor + shift; }

static void scale_example(const void* given, Size n) {
    Norm norm = *(const Norm*)given;
    const float *restrict x = norm.x + n * size_of(norm), *restrict factor = norm.factor, *restrict shift = norm.shift;
    float* restrict to = norm.result + n * size_of(norm);
    for (Size pixel = 0; pixel < norm.height * norm.width; pixel++, x += norm.channels, to += norm.channels)
        for (Size c = 0; c < norm.channels; c++) {
            float value = scaled(x[c], factor[c], shift[c]);
            to[c] = value <= 0 ? 0 : value;
        }
}

// The gradient of an example's x, and what it adds to those of the factor and the shift.
static void scale_example_gradient(const void* given, Size n) {
    Norm norm = *(const Norm*)given;
    const float *restrict x = norm.x + n * size_of(norm), *restrict gradient = norm.gradient + n * size_of(norm);
    const float *restrict factor = norm.factor, *restrict shift = norm.shift;
    float *restrict to = norm.result + n * size_of(norm), *restrict to_factor = norm.sums + 2 * n * norm.channels;
    float* restrict to_shift = to_factor + norm.channels;
    float *restrict line = scratch(OWN, 2 * norm.channels), *restrict line_shift = line + norm.channels;
    memset(to_factor, 0, 2 * norm.channels * sizeof(float));
    for (Size y = 0; y < norm.height; y++) {
        memset(line, 0, 2 * norm.channels * sizeof(float));
        for (Size i = 0; i < norm.width; i++) {
            for (Size c = 0; c < norm.channels; c++) {
                float passed = scaled(x[c], factor[c], shift[c]) > 0 ? gradient[c] : 0;
                line[c] += passed * x[c], line_shift[c] += passed;
                to[c] = passed * factor[c];
            }
            x += norm.channels, gradient += norm.channels, to += norm.channels;
        }
        for (Size c = 0; c < norm.channels; c++) to_factor[c] += line[c], to_shift[c] += line_shift[c];
    }
}

static void share_out_examples(XLA_FFI_CallFrame* frame, Norm norm, void (*turn)(const void*, Size)) {
    // Four times: what it does waits for memory.
    share_out(frame, norm.examples, 4 * norm.examples * size_of(norm), turn, &norm);
}
