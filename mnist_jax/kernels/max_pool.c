// The loops over channels promise the compiler that inputs and outputs do not overlap (assume_safety). The run-time
// check that it would otherwise add costs more than the pixel itself.

#include "max_pool.h"

#include "memory.h"
#include "parallel_for.h"

static dim_t pooled_size(MaxPool p) { return (p.height / 2) * (p.width / 2) * p.channels; }

static void forward_example(const void* context, dim_t n) {
    MaxPool p = *(const MaxPool*)context;
    dim_t row_size = p.width * p.channels;
    float* restrict dst = p.result + n * pooled_size(p);
    for (dim_t y = 0; y + 1 < p.height; y += 2)
        for (dim_t x = 0; x + 1 < p.width; x += 2, dst += p.channels) {
            const float* restrict top_left = p.image + (n * p.height + y) * row_size + x * p.channels;
            const float *top_right = top_left + p.channels, *bottom_left = top_left + row_size;
            const float* bottom_right = bottom_left + p.channels;
#pragma clang loop vectorize(assume_safety)
            for (dim_t c = 0; c < p.channels; c++) {
                dst[c] = max_or_nan(max_or_nan(top_left[c], top_right[c]), max_or_nan(bottom_left[c], bottom_right[c]));
            }
        }
}

// The fraction of the gradient of max(a, b) that goes to a.
static inline float gradient_fraction(float a, float b) { return a > b ? 1 : a == b ? 0.5f : 0; }

static void gradient_example(const void* context, dim_t n) {
    MaxPool p = *(const MaxPool*)context;
    dim_t size = p.height * p.width * p.channels, row_size = p.width * p.channels;
    const float* restrict gradient = p.gradient + n * pooled_size(p);
    if (p.height % 2 || p.width % 2) memset(p.result + n * size, 0, size * sizeof(float));
    for (dim_t y = 0; y + 1 < p.height; y += 2)
        for (dim_t x = 0; x + 1 < p.width; x += 2, gradient += p.channels) {
            const float* restrict image = p.image + n * size + y * row_size + x * p.channels;
            float* restrict dst = p.result + n * size + y * row_size + x * p.channels;
#pragma clang loop vectorize(assume_safety)
            for (dim_t c = 0; c < p.channels; c++) {
                float top_left = image[c], top_right = image[c + p.channels];
                float bottom_left = image[c + row_size], bottom_right = image[c + row_size + p.channels];
                float top_fraction =
                    gradient_fraction(max_or_nan(top_left, top_right), max_or_nan(bottom_left, bottom_right));
                float top = top_fraction * gradient[c], bottom = gradient[c] - top;
                dst[c] = gradient_fraction(top_left, top_right) * top;
                dst[c + p.channels] = gradient_fraction(top_right, top_left) * top;
                dst[c + row_size] = gradient_fraction(bottom_left, bottom_right) * bottom;
                dst[c + row_size + p.channels] = gradient_fraction(bottom_right, bottom_left) * bottom;
            }
        }
}

static void run(XLA_FFI_CallFrame* frame, MaxPool p, LoopBody* body) {
    dim_t values = p.examples * p.height * p.width * p.channels;
    parallel_for(frame, p.examples, 4 * values, body, &p);  // Weighted by 4: pooling is memory-bound.
}

void max_pool_forward(XLA_FFI_CallFrame* frame, MaxPool p) { run(frame, p, forward_example); }

void max_pool_gradient(XLA_FFI_CallFrame* frame, MaxPool p) { run(frame, p, gradient_example); }
