// Convolutions with stride 1, as matrix products whose left operand is read where it lies in a padded image:
//   output:           [pixel][feature] = sum over taps   of image[pixel + tap] * kernel[tap][feature]
//   kernel gradient:  [tap][feature]   = sum over pixels of image[pixel + tap] * gradient[pixel][feature]
//   image gradient:   the convolution of the output's gradient with the kernel turned around
// where a tap is a place and a channel under the kernel. The padding is what the shapes say, its smaller half first; for
// the image gradient, its larger half.

#pragma once
#include "product.h"
#include "threads.h"

// Floats that the rows of an image which are used together may take: processors with the widest vectors have a large
// second-level cache.
enum { CACHE = LANES == 16 ? 40000 : 6144 };

typedef struct {
    Size examples, height, width, channels, features, kernel_height, kernel_width, out_height, out_width;
    Size pixels, taps, padded_width, padded_size, before_height, before_width;  // of one example
    Size work;
} Shape;

static Shape shape_of(const int64_t* image, const int64_t* kernel, const int64_t* output, int turned) {
    Shape s = {.examples = image[0], .height = image[1], .width = image[2], .channels = image[3]};
    s.kernel_height = kernel[0], s.kernel_width = kernel[1], s.features = output[3];
    s.out_height = output[1], s.out_width = output[2];
    s.pixels = s.out_height * s.out_width;
    s.taps = s.kernel_height * s.kernel_width * s.channels;
    s.work = s.examples * s.pixels * s.taps * s.features;
    s.padded_width = s.out_width + s.kernel_width - 1;
    s.padded_size = (s.out_height + s.kernel_height - 1) * s.padded_width * s.channels;
    s.before_height = (s.out_height + s.kernel_height - 1 - s.height + turned) / 2;
    s.before_width = (s.padded_width - s.width + turned) / 2;
    return s;
}

// An image with its border of zeros, in `padded` unless the image is all of it; where `active` is given, the gradient
// of a ReLU's output, as in pack_gradient.
static const float* pad(const float* image, const float* active, Shape s, float* restrict padded) {
    Size size = s.height * s.width * s.channels, row = s.width * s.channels, line = s.padded_width * s.channels;
    if (active == NULL && s.padded_size == size) return image;
    Size place = (s.before_height * s.padded_width + s.before_width) * s.channels;
    memset(padded, 0, place * sizeof(float));
    for (Size y = 0; y < s.height; y++, place += line) {
        const float *from = image + y * row, *above = active + y * row;
        if (active == NULL) memcpy(padded + place, from, row * sizeof(float));
        else
            for (Size i = 0; i < row; i++) padded[place + i] = above[i] > 0 ? from[i] : 0;
        Size next = y + 1 < s.height ? place + line : s.padded_size;
        memset(padded + place + row, 0, (next - place - row) * sizeof(float));
    }
    return padded;
}

// A block of features of the kernel, tap by tap. A turned kernel leads from the features to the channels, and its last
// place is the first.
static void pack_kernel(const float* kernel, Shape s, Size first, Size width, int turned, float* packed) {
    if (!turned) {
        pack(kernel + first, s.taps, s.features, width, packed);
        return;
    }
    if (width < BLOCK) memset(packed, 0, s.taps * BLOCK * sizeof(float));
    for (Size place = s.kernel_height * s.kernel_width; place-- > 0; packed += s.channels * BLOCK) {
        const float* from = kernel + (place * s.features + first) * s.channels;
        transpose(from, NULL, width, s.channels, s.channels, packed, BLOCK);
    }
}

typedef struct {
    Shape shape;
    const float *image, *active, *packed, *bias;
    int relu;
    float* output;
} Convolution;

// The output of example `n`.
static void convolve_example(const void* given, Size n) {
    Convolution c = *(const Convolution*)given;
    Shape s = c.shape;
    Size image_size = s.height * s.width * s.channels;
    Terms terms = {s.kernel_height, s.kernel_width * s.channels, 1, s.padded_width * s.channels};
    const float* active = c.active ? c.active + n * image_size : NULL;
    const float* padded = pad(c.image + n * image_size, active, s, scratch(OWN, s.padded_size));
    for (Size first = 0; first < s.features; first += BLOCK) {
        Size width = smaller(BLOCK, s.features - first), x = 0, y = 0;
        float* to = c.output + n * s.pixels * s.features + first;
        Vector bias[VECTORS] = {0};
        if (c.bias != NULL) load(c.bias + first, width, bias);
        for (Size pixel = 0; pixel < s.pixels; pixel += ROWS) {
            Size rows = smaller(ROWS, s.pixels - pixel);
            Vector total[ROWS][VECTORS] = {0};
            const float* left[ROWS];
            for (Size i = 0; i < ROWS; i++) {
                left[i] = padded + (y * s.padded_width + x) * s.channels;
                if (i + 1 < rows && ++x == s.out_width) x = 0, y++;
            }
            if (++x == s.out_width) x = 0, y++;
            multiply(rows, width, left, terms, c.packed + first * s.taps, total);
            for (Size i = 0; i < rows; i++) store_output(total[i], bias, c.relu, width, to + (pixel + i) * s.features);
        }
    }
}

static void convolve(XLA_FFI_CallFrame* frame, Shape s, const float* image, const float* active, const float* kernel,
                     int turned, const float* bias, int relu, float* output) {
    float* packed = scratch(SHARED, ratio_up(s.features, BLOCK) * BLOCK * s.taps);
    for (Size first = 0; first < s.features; first += BLOCK)
        pack_kernel(kernel, s, first, smaller(BLOCK, s.features - first), turned, packed + first * s.taps);
    Convolution given = {s, image, active, packed, bias, relu, output};
    share_out(frame, s.examples, s.work, convolve_example, &given);
}

typedef struct {
    Shape shape;
    Size parts;  // of the taps
    const float *image, *gradient, *active;
    float *of_examples, *to_kernel, *to_bias;
} Gradient;

// How many rows of pixels are used together.
static Size rows_together(Shape s) { return CACHE / (s.padded_width * s.channels + s.out_width * BLOCK) + 1; }

static Size memory_of_example(Shape s) { return aligned(s.padded_size) + rows_together(s) * s.out_width * BLOCK; }

// Add what the rows of pixels from `y` on say to `sums`: the gradient of the taps from `tap` on, a block of features.
static void add_rows(Shape s, Size y, Size rows, Size tap, Size end, Size width, const float* padded,
                     const float* packed, float* sums) {
    Terms terms = {rows, s.out_width, s.channels, s.padded_width * s.channels};
    Size run = s.kernel_width * s.channels;
    for (; tap < end; tap += ROWS) {
        Size count = smaller(ROWS, end - tap);
        const float* left[ROWS];
        Vector total[ROWS][VECTORS] = {0};
        for (Size i = 0; i < ROWS; i++) {
            Size own = tap + smaller(i, count - 1);
            left[i] = padded + (y + own / run) * terms.jump + own % run;
        }
        if (y > 0)
            for (Size i = 0; i < count; i++) load(sums + i * BLOCK, BLOCK, total[i]);
        multiply(count, width, left, terms, packed, total);
        for (Size i = 0; i < count; i++, sums += BLOCK) store(total[i], BLOCK, sums);
    }
}

// What example `n` says: `sums`, the gradient of the taps from `tap` on, a block of features; and what it adds to the
// gradient of their bias.
static void sum_example(const Gradient* g, Size n, Size first, Size tap, Size end, float* memory, float* sums,
                        Vector bias[VECTORS]) {
    Shape s = g->shape;
    Size width = smaller(BLOCK, s.features - first), most_rows = rows_together(s);
    float* packed = memory + aligned(s.padded_size);
    Vector of_example[VECTORS] = {0};
    const float* padded = pad(g->image + n * s.height * s.width * s.channels, NULL, s, memory);
    for (Size y = 0; y < s.out_height; y += most_rows) {
        Size rows = smaller(most_rows, s.out_height - y);
        Size place = (n * s.pixels + y * s.out_width) * s.features + first;
        pack_gradient(g->gradient + place, g->active ? g->active + place : NULL, rows * s.out_width, s.features, width,
                      packed, of_example);
        add_rows(s, y, rows, tap, end, width, padded, packed, sums);
    }
    for (int v = 0; v < VECTORS; v++) bias[v] += of_example[v];
}

// Add the sums of example `n`, or set what they are added to.
static void add_example(const Gradient* g, Size n, Size first, Size tap, Size end, const float* sums) {
    Size features = g->shape.features, width = smaller(BLOCK, features - first);
    for (; tap < end; tap++, sums += BLOCK) {
        float* to = g->to_kernel + tap * features + first;
        Vector total[VECTORS] = {0};
        if (n > 0) load(to, width, total);
        for (int v = 0; v < VECTORS; v++) total[v] += ((const Vector*)sums)[v];
        store(total, width, to);
    }
}

// The gradient of one part of the taps, and a block of features. Each example is summed up by itself, which rounds less.
static void gradient_of_part(const void* given, Size number) {
    const Gradient* g = given;
    Shape s = g->shape;
    Size part = number % g->parts, first = number / g->parts * BLOCK;
    Size tiles = ratio_up(s.taps, ROWS), tap = tiles * part / g->parts * ROWS;
    Size end = smaller(tiles * (part + 1) / g->parts * ROWS, s.taps);
    float* memory = scratch(OWN, memory_of_example(s) + (end - tap) * BLOCK);
    float* sums = memory + memory_of_example(s);
    Vector bias[VECTORS] = {0};
    for (Size n = 0; n < s.examples; n++) {
        sum_example(g, n, first, tap, end, memory, sums, bias);
        add_example(g, n, first, tap, end, sums);
    }
    if (part == 0) store(bias, smaller(BLOCK, s.features - first), g->to_bias + first);
}

static Size sums_of_example(Shape s) { return (s.taps + 1) * BLOCK; }

// What each block of features of example `n` says, in memory of its own: first of the bias, then of the taps.
static void gradient_of_example(const void* given, Size n) {
    const Gradient* g = given;
    Shape s = g->shape;
    float* memory = scratch(OWN, memory_of_example(s));
    float* sums = g->of_examples + n * ratio_up(s.features, BLOCK) * sums_of_example(s);
    for (Size first = 0; first < s.features; first += BLOCK, sums += sums_of_example(s)) {
        memset(sums, 0, BLOCK * sizeof(float));
        sum_example(g, n, first, 0, s.taps, memory, sums + BLOCK, (Vector*)sums);
    }
}

static void add_examples_up(const Gradient* g) {
    Shape s = g->shape;
    const float* sums = g->of_examples;
    for (Size n = 0; n < s.examples; n++)
        for (Size first = 0; first < s.features; first += BLOCK, sums += sums_of_example(s)) {
            Size width = smaller(BLOCK, s.features - first);
            Vector bias[VECTORS] = {0};
            if (n > 0) load(g->to_bias + first, width, bias);
            for (int v = 0; v < VECTORS; v++) bias[v] += ((const Vector*)sums)[v];
            store(bias, width, g->to_bias + first);
            add_example(g, n, first, 0, s.taps, sums + BLOCK);
        }
}

static void convolution_gradient(XLA_FFI_CallFrame* frame, Shape s, const float* image, const float* gradient,
                                 const float* active, float* to_kernel, float* to_bias) {
    Size blocks = ratio_up(s.features, BLOCK);
    Size parts = smaller(ratio_up(most_threads, blocks), ratio_up(s.taps, ROWS));
    Gradient given = {s, parts, image, gradient, active, NULL, to_kernel, to_bias};
    if (blocks * parts >= most_threads) {
        share_out(frame, blocks * parts, s.work, gradient_of_part, &given);
        return;
    }
    given.of_examples = scratch(SHARED, s.examples * blocks * sums_of_example(s));
    share_out(frame, s.examples, s.work, gradient_of_example, &given);
    add_examples_up(&given);
}
