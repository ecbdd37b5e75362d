#include "warp.h"

#include "memory.h"
#include "parallel_for.h"

enum { COST = 30 };  // of a pixel, in multiply-adds

// Returns the value of a pixel of one channel, or 0 outside of the image.
static inline float pixel(const Warp* w, const float* image, dim_t row, dim_t column) {
    if (row < 0 || row >= w->height || column < 0 || column >= w->width) return 0;
    return image[(row * w->width + column) * w->channels];
}

// Returns the value of one channel at a position. A position of any size, or NaN, reads no pixel outside of the image.
static inline float sample(const Warp* w, const float* image, float row, float column) {
    if (!(row > -1 && row < w->height && column > -1 && column < w->width)) return 0;
    float row_below = __builtin_floorf(row), column_below = __builtin_floorf(column);
    float row_fraction = row - row_below, column_fraction = column - column_below;
    dim_t i = (dim_t)row_below, j = (dim_t)column_below;
    float top_left = pixel(w, image, i, j), top_right = pixel(w, image, i, j + 1);
    float bottom_left = pixel(w, image, i + 1, j), bottom_right = pixel(w, image, i + 1, j + 1);
    float top = __builtin_fmaf(column_fraction, top_right - top_left, top_left);
    float bottom = __builtin_fmaf(column_fraction, bottom_right - bottom_left, bottom_left);
    return __builtin_fmaf(row_fraction, bottom - top, top);
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
    float row_per_column = -sine * m[STRETCH], column_per_column = cosine / m[STRETCH];
    row_per_row *= m[STRETCH];
    column_per_row /= m[STRETCH];
    for (dim_t y = 0; y < w->height; y++) {
        float down = y - middle_row;
        float first_row = __builtin_fmaf(row_per_row, down, middle_row - m[DOWN]);
        float first_column = __builtin_fmaf(column_per_row, down, middle_column - m[RIGHT]);
        for (dim_t x = 0; x < w->width; x++) {
            float right = x - middle_column;
            float row = __builtin_fmaf(row_per_column, right, first_row);
            float column = __builtin_fmaf(column_per_column, right, first_column);
            for (dim_t c = 0; c < w->channels; c++)
                *result++ = __builtin_fmaf(m[GAIN], sample(w, image + c, row, column), m[OFFSET]);
        }
    }
}

void warp(XLA_FFI_CallFrame* frame, Warp w) {
    parallel_for(frame, w.examples, COST * w.examples * w.height * w.width * w.channels, warp_example, &w);
}

// Adds tap * src to dst, a row of `count` floats.
static inline void add_row(float tap, const float* src, dim_t count, float* dst) {
    for (dim_t x = 0; x < count; x++) dst[x] = __builtin_fmaf(tap, src[x], dst[x]);
}

// Smooths a field of height x width floats along both axes, by way of `rows`, which has as many.
static void smooth(const Distortion* d, const float* noise, float* rows, float* field) {
    dim_t height = d->images.height, width = d->images.width, radius = d->taps_count / 2;
    memset(rows, 0, height * width * sizeof(float));
    memset(field, 0, height * width * sizeof(float));
    for (dim_t y = 0; y < height; y++)
        for (dim_t t = 0; t < d->taps_count; t++) {
            dim_t source = y + t - radius;
            if (source >= 0 && source < height) add_row(d->taps[t], noise + source * width, width, rows + y * width);
        }
    for (dim_t t = 0; t < d->taps_count; t++) {
        dim_t shift = t - radius, first = shift < 0 ? -shift : 0, end = shift > 0 ? width - shift : width;
        for (dim_t y = 0; y < height && first < end; y++)
            add_row(d->taps[t], rows + y * width + first + shift, end - first, field + y * width + first);
    }
}

static void distort_example(const void* context, dim_t example) {
    const Distortion* d = context;
    const Warp* w = &d->images;
    dim_t pixels = w->height * w->width;
    const float *image = w->image + example * pixels * w->channels, *noise = d->noise + example * 2 * pixels;
    float* result = w->result + example * pixels * w->channels;
    float* fields = scratch(SCRATCH_LOCAL, 3 * pixels);
    float *down = fields, *right = fields + pixels, *rows = fields + 2 * pixels;
    smooth(d, noise, rows, down);
    smooth(d, noise + pixels, rows, right);
    for (dim_t y = 0; y < w->height; y++)
        for (dim_t x = 0; x < w->width; x++)
            for (dim_t c = 0; c < w->channels; c++)
                *result++ = sample(w, image + c, y + down[y * w->width + x], x + right[y * w->width + x]);
}

void distort(XLA_FFI_CallFrame* frame, Distortion d) {
    dim_t pixels = d.images.examples * d.images.height * d.images.width;
    parallel_for(frame, d.images.examples, (COST * d.images.channels + 4 * d.taps_count) * pixels, distort_example, &d);
}
