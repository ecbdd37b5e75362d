#include "warp.h"

#include "parallel_for.h"

enum { COST = 30 };  // of a pixel, in multiply-adds

// Returns the value of a pixel of one channel, or 0 outside of the image.
static inline float pixel(const Warp* w, const float* image, dim_t row, dim_t column) {
    if (row < 0 || row >= w->height || column < 0 || column >= w->width) return 0;
    return image[(row * w->width + column) * w->channels];
}

static void warp_example(const void* context, dim_t example) {
    const Warp* w = context;
    dim_t size = w->height * w->width * w->channels;
    const float *image = w->image + example * size, *m = w->motion + example * MOTION;
    float* result = w->result + example * size;
    float middle_row = 0.5f * (w->height - 1), middle_column = 0.5f * (w->width - 1);
    float cosine = m[COSINE] * m[ZOOM], sine = m[SINE] * m[ZOOM];
    // Each sum of a product is one fused multiply-add, in this order, on every processor.
    float row_per_row = __builtin_fmaf(-sine, m[SHEAR], cosine);
    float column_per_row = __builtin_fmaf(cosine, m[SHEAR], sine);
    for (dim_t y = 0; y < w->height; y++) {
        float down = y - middle_row;
        float first_row = __builtin_fmaf(row_per_row, down, middle_row - m[DOWN]);
        float first_column = __builtin_fmaf(column_per_row, down, middle_column - m[RIGHT]);
        for (dim_t x = 0; x < w->width; x++) {
            float right = x - middle_column;
            float row = __builtin_fmaf(-sine, right, first_row);
            float column = __builtin_fmaf(cosine, right, first_column);
            // A motion of any size, or NaN, reads no pixel outside of the image.
            int inside = row > -1 && row < w->height && column > -1 && column < w->width;
            float row_below = __builtin_floorf(row), column_below = __builtin_floorf(column);
            float row_fraction = row - row_below, column_fraction = column - column_below;
            dim_t i = inside ? (dim_t)row_below : 0, j = inside ? (dim_t)column_below : 0;
            for (dim_t c = 0; c < w->channels; c++) {
                float value = 0;
                if (inside) {
                    float top_left = pixel(w, image + c, i, j), top_right = pixel(w, image + c, i, j + 1);
                    float bottom_left = pixel(w, image + c, i + 1, j);
                    float bottom_right = pixel(w, image + c, i + 1, j + 1);
                    float top = __builtin_fmaf(column_fraction, top_right - top_left, top_left);
                    float bottom = __builtin_fmaf(column_fraction, bottom_right - bottom_left, bottom_left);
                    value = __builtin_fmaf(row_fraction, bottom - top, top);
                }
                *result++ = __builtin_fmaf(m[GAIN], value, m[OFFSET]);
            }
        }
    }
}

void warp(XLA_FFI_CallFrame* frame, Warp w) {
    parallel_for(frame, w.examples, COST * w.examples * w.height * w.width * w.channels, warp_example, &w);
}
