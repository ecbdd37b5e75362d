#include "convolution.h"

#include "gemm.h"
#include "memory.h"
#include "parallel_for.h"
#include "winograd.h"

// Floats of image rows and gradient rows that are processed together and should stay in a cache: 24 KiB, or 156 KiB on
// CPUs with AVX-512, which have a large L2 cache.
enum { CACHE_FLOATS = LANES == 16 ? 40000 : 6144 };

ConvShape conv_shape(const int64_t* image, const int64_t* kernel, const int64_t* output, int flipped) {
    ConvShape s = {.examples = image[0], .height = image[1], .width = image[2], .channels = image[3]};
    s.kernel_height = kernel[0], s.kernel_width = kernel[1], s.features = output[3];
    s.out_height = output[1], s.out_width = output[2];
    s.pixels = s.out_height * s.out_width;
    s.taps = s.kernel_height * s.kernel_width * s.channels;
    s.work = s.examples * s.pixels * s.taps * s.features;
    dim_t padded_height = s.out_height + s.kernel_height - 1;
    s.padded_width = s.out_width + s.kernel_width - 1;
    s.padded_size = padded_height * s.padded_width * s.channels;
    s.pad_top = (padded_height - s.height + flipped) / 2;
    s.pad_left = (s.padded_width - s.width + flipped) / 2;
    return s;
}

static dim_t image_size(ConvShape s) { return s.height * s.width * s.channels; }

const float* pad(const float* image, const float* relu_output, ConvShape s, float* restrict padded) {
    if (relu_output == NULL && s.padded_size == image_size(s)) return image;
    dim_t row_size = s.width * s.channels, padded_row_size = s.padded_width * s.channels;
    dim_t offset = (s.pad_top * s.padded_width + s.pad_left) * s.channels;
    memset(padded, 0, offset * sizeof(float));
    for (dim_t y = 0; y < s.height; y++, offset += padded_row_size) {
        const float* src = image + y * row_size;
        if (relu_output == NULL) {
            memcpy(padded + offset, src, row_size * sizeof(float));
        } else {
            const float* output = relu_output + y * row_size;
            for (dim_t i = 0; i < row_size; i++) padded[offset + i] = output[i] > 0 ? src[i] : 0;
        }
        dim_t next = y + 1 < s.height ? offset + padded_row_size : s.padded_size;
        memset(padded + offset + row_size, 0, (next - offset - row_size) * sizeof(float));
    }
    return padded;
}

void pack_kernel(const float* kernel, ConvShape s, dim_t first_feature, dim_t cols, int flipped, float* packed) {
    if (!flipped) {
        pack(kernel + first_feature, s.taps, s.features, cols, packed);
        return;
    }
    if (cols < NR) memset(packed, 0, s.taps * NR * sizeof(float));
    for (dim_t position = s.kernel_height * s.kernel_width; position-- > 0; packed += s.channels * NR) {
        const float* src = kernel + (position * s.features + first_feature) * s.channels;
        transpose(src, NULL, cols, s.channels, s.channels, packed, NR);
    }
}

typedef struct {
    ConvShape shape;
    const float *image, *relu_output, *packed_kernel, *bias;
    int relu;
    float* output;
} Convolution;

static void convolve_example(const void* context, dim_t n) {
    Convolution c = *(const Convolution*)context;
    ConvShape s = c.shape;
    Reduction taps = {
        .outer_count = s.kernel_height,
        .inner_count = s.kernel_width * s.channels,
        .inner_stride = 1,
        .outer_stride = s.padded_width * s.channels,
    };
    const float* relu_output = c.relu_output ? c.relu_output + n * image_size(s) : NULL;
    const float* padded = pad(c.image + n * image_size(s), relu_output, s, scratch(SCRATCH_LOCAL, s.padded_size));
    for (dim_t first = 0; first < s.features; first += NR) {
        dim_t cols = min(NR, s.features - first), x = 0, y = 0;
        float* output = c.output + n * s.pixels * s.features + first;
        Vec bias[NR_VECTORS] = {0};
        if (c.bias != NULL) load_row(c.bias + first, cols, bias);
        for (dim_t pixel = 0; pixel < s.pixels; pixel += MR) {
            dim_t rows = min(MR, s.pixels - pixel);
            Vec sums[MR][NR_VECTORS];
            const float* patches[MR];
            for (dim_t i = 0; i < MR; i++) {  // Rows beyond the last pixel read its patch again.
                patches[i] = padded + (y * s.padded_width + x) * s.channels;
                if (i + 1 < rows && ++x == s.out_width) x = 0, y++;
            }
            if (++x == s.out_width) x = 0, y++;
            gemm_tile(rows, cols, patches, taps, c.packed_kernel + first * s.taps, sums);
            for (dim_t i = 0; i < rows; i++)
                store_output(sums[i], bias, c.relu, cols, output + (pixel + i) * s.features);
        }
    }
}

void convolve(XLA_FFI_CallFrame* frame, ConvShape s, const float* image, const float* relu_output, const float* kernel,
              int flipped, const float* bias, int relu, float* output) {
    if (winograd_pays(s)) {
        winograd_convolve(frame, s, image, relu_output, kernel, flipped, bias, relu, output);
        return;
    }
    float* packed_kernel = scratch(SCRATCH_SHARED, ceil_div(s.features, NR) * NR * s.taps);
    for (dim_t first = 0; first < s.features; first += NR)
        pack_kernel(kernel, s, first, min(NR, s.features - first), flipped, packed_kernel + first * s.taps);
    Convolution context = {s, image, relu_output, packed_kernel, bias, relu, output};
    parallel_for(frame, s.examples, s.work, convolve_example, &context);
}

typedef struct {
    ConvShape shape;
    dim_t tap_blocks;  // number of blocks of taps; each block is a task
    const float *image, *gradient, *relu_output;
    float* example_sums;  // for each example and block of features: the sums of the bias, then of the taps
    float *kernel_gradient, *bias_gradient;
} Gradient;

// Number of output rows that are processed together.
static dim_t rows_per_block(ConvShape s) { return CACHE_FLOATS / (s.padded_width * s.channels + s.out_width * NR) + 1; }

// Scratch memory for one example: the padded image and a block of packed gradient rows, in floats.
static dim_t example_scratch_size(ConvShape s) {
    return align_up(s.padded_size) + rows_per_block(s) * s.out_width * NR;
}

// Adds `rows` output rows, starting with row y, to the sums of the taps in [first_tap, end_tap). Row 0 initializes
// them.
static void add_rows(ConvShape s, dim_t y, dim_t rows, dim_t first_tap, dim_t end_tap, dim_t cols, const float* padded,
                     const float* packed_gradient, float* sums) {
    Reduction pixels = {
        .outer_count = rows,
        .inner_count = s.out_width,
        .inner_stride = s.channels,
        .outer_stride = s.padded_width * s.channels,
        .continued = y > 0,
    };
    dim_t kernel_row_size = s.kernel_width * s.channels;
    for (dim_t tap = first_tap; tap < end_tap; tap += MR) {
        dim_t count = min(MR, end_tap - tap);
        const float* patches[MR];
        Vec tile[MR][NR_VECTORS];
        for (dim_t i = 0; i < MR; i++) {
            dim_t row_tap = tap + min(i, count - 1);
            patches[i] = padded + (y + row_tap / kernel_row_size) * pixels.outer_stride + row_tap % kernel_row_size;
        }
        if (y > 0)
            for (dim_t i = 0; i < count; i++) load_row(sums + i * NR, NR, tile[i]);
        gemm_tile(count, cols, patches, pixels, packed_gradient, tile);
        for (dim_t i = 0; i < count; i++, sums += NR) store_row(tile[i], NR, sums);
    }
}

// Computes the contribution of example n to one block of features: writes the gradient of the taps to `sums`, and adds
// the gradient of the bias to bias_sums.
static void sum_example(const Gradient* g, dim_t n, dim_t first_feature, dim_t first_tap, dim_t end_tap,
                        float* example_scratch, float* sums, Vec bias_sums[NR_VECTORS]) {
    ConvShape s = g->shape;
    dim_t cols = min(NR, s.features - first_feature), block_rows = rows_per_block(s);
    float* packed_gradient = example_scratch + align_up(s.padded_size);
    Vec example_bias[NR_VECTORS] = {0};
    const float* padded = pad(g->image + n * image_size(s), NULL, s, example_scratch);
    for (dim_t y = 0; y < s.out_height; y += block_rows) {
        dim_t rows = min(block_rows, s.out_height - y);
        dim_t offset = (n * s.pixels + y * s.out_width) * s.features + first_feature;
        pack_gradient(g->gradient + offset, g->relu_output ? g->relu_output + offset : NULL, rows * s.out_width,
                      s.features, cols, packed_gradient, example_bias);
        add_rows(s, y, rows, first_tap, end_tap, cols, padded, packed_gradient, sums);
    }
    for (int v = 0; v < NR_VECTORS; v++) bias_sums[v] += example_bias[v];
}

// Adds the sums of example n to the kernel gradient. Example 0 initializes it.
static void add_example(const Gradient* g, dim_t n, dim_t first_feature, dim_t first_tap, dim_t end_tap,
                        const float* sums) {
    dim_t features = g->shape.features, cols = min(NR, features - first_feature);
    for (dim_t tap = first_tap; tap < end_tap; tap++, sums += NR) {
        float* dst = g->kernel_gradient + tap * features + first_feature;
        Vec total[NR_VECTORS] = {0};
        if (n > 0) load_row(dst, cols, total);
        for (int v = 0; v < NR_VECTORS; v++) total[v] += ((const Vec*)sums)[v];
        store_row(total, cols, dst);
    }
}

// Task: the gradient of one block of taps and one block of features, over all examples. Each example is summed
// separately first, which reduces rounding errors.
static void gradient_of_block(const void* context, dim_t index) {
    const Gradient* g = context;
    ConvShape s = g->shape;
    dim_t tap_block = index % g->tap_blocks, first_feature = index / g->tap_blocks * NR;
    dim_t tiles = ceil_div(s.taps, MR), first_tap = tiles * tap_block / g->tap_blocks * MR;
    dim_t end_tap = min(tiles * (tap_block + 1) / g->tap_blocks * MR, s.taps);
    float* example_scratch = scratch(SCRATCH_LOCAL, example_scratch_size(s) + (end_tap - first_tap) * NR);
    float* sums = example_scratch + example_scratch_size(s);
    Vec bias_sums[NR_VECTORS] = {0};
    for (dim_t n = 0; n < s.examples; n++) {
        sum_example(g, n, first_feature, first_tap, end_tap, example_scratch, sums, bias_sums);
        add_example(g, n, first_feature, first_tap, end_tap, sums);
    }
    if (tap_block == 0) store_row(bias_sums, min(NR, s.features - first_feature), g->bias_gradient + first_feature);
}

// Floats in example_sums for one example and one block of features.
static dim_t example_sums_size(ConvShape s) { return (s.taps + 1) * NR; }

// Task: the contribution of one example to all taps and features, written to example_sums.
static void gradient_of_example(const void* context, dim_t n) {
    const Gradient* g = context;
    ConvShape s = g->shape;
    float* example_scratch = scratch(SCRATCH_LOCAL, example_scratch_size(s));
    float* sums = g->example_sums + n * ceil_div(s.features, NR) * example_sums_size(s);
    for (dim_t first = 0; first < s.features; first += NR, sums += example_sums_size(s)) {
        memset(sums, 0, NR * sizeof(float));
        sum_example(g, n, first, 0, s.taps, example_scratch, sums + NR, (Vec*)sums);
    }
}

// Adds the example_sums of all examples in their order, so the result has the same bits as that of gradient_of_block.
static void add_examples(const Gradient* g) {
    ConvShape s = g->shape;
    const float* sums = g->example_sums;
    for (dim_t n = 0; n < s.examples; n++)
        for (dim_t first = 0; first < s.features; first += NR, sums += example_sums_size(s)) {
            dim_t cols = min(NR, s.features - first);
            Vec bias_sums[NR_VECTORS] = {0};
            if (n > 0) load_row(g->bias_gradient + first, cols, bias_sums);
            for (int v = 0; v < NR_VECTORS; v++) bias_sums[v] += ((const Vec*)sums)[v];
            store_row(bias_sums, cols, g->bias_gradient + first);
            add_example(g, n, first, 0, s.taps, sums + NR);
        }
}

// Runs in parallel over blocks of taps and features if there are enough for all threads, and otherwise over examples.
void convolution_gradient(XLA_FFI_CallFrame* frame, ConvShape s, const float* image, const float* gradient,
                          const float* relu_output, float* kernel_gradient, float* bias_gradient) {
    dim_t feature_blocks = ceil_div(s.features, NR);
    dim_t tap_blocks = min(ceil_div(get_max_threads(), feature_blocks), ceil_div(s.taps, MR));
    Gradient context = {s, tap_blocks, image, gradient, relu_output, NULL, kernel_gradient, bias_gradient};
    if (feature_blocks * tap_blocks >= get_max_threads()) {
        parallel_for(frame, feature_blocks * tap_blocks, s.work, gradient_of_block, &context);
        return;
    }
    context.example_sums = scratch(SCRATCH_SHARED, s.examples * feature_blocks * example_sums_size(s));
    parallel_for(frame, s.examples, s.work, gradient_of_example, &context);
    add_examples(&context);
}
