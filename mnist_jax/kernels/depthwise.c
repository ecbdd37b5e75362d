#include "depthwise.h"

#include "memory.h"
#include "parallel_for.h"

// Channels are computed in blocks, of one to four vectors; their number does not depend on the width of the vectors.
// CHAINS: independent partial sums, which hide latencies. PIXELS: outputs that are computed at the same time.
enum { BLOCK = 16, VECTORS = BLOCK / LANES, CHAINS = 4, PIXELS = 4 };

typedef struct {
    Vec vectors[VECTORS];
} Block;

// Loads up to BLOCK channels and fills the rest with zeros.
static inline __attribute__((always_inline)) Block load(const float* src, dim_t count) {
    Block b;
    if (count == BLOCK) {
        for (int v = 0; v < VECTORS; v++) b.vectors[v] = *(const VecUnaligned*)&src[v * LANES];
    } else {
        for (dim_t c = 0; c < BLOCK; c++) ((float*)&b)[c] = c < count ? src[c] : 0;
    }
    return b;
}

static inline __attribute__((always_inline)) void store(const Block* b, dim_t count, float* dst) {
    if (count == BLOCK) {
        for (int v = 0; v < VECTORS; v++) *(VecUnaligned*)&dst[v * LANES] = b->vectors[v];
    } else {
        for (dim_t c = 0; c < count; c++) dst[c] = ((const float*)b)[c];
    }
}

static inline __attribute__((always_inline)) void add_product(Block a, Block b, Block* sum) {
    for (int v = 0; v < VECTORS; v++) sum->vectors[v] += a.vectors[v] * b.vectors[v];
}

static inline __attribute__((always_inline)) void add(Block a, Block* sum) {
    for (int v = 0; v < VECTORS; v++) sum->vectors[v] += a.vectors[v];
}

// Sets negative numbers to 0, and keeps NaN.
static inline __attribute__((always_inline)) void rectify(Block* b) {
    for (int v = 0; v < VECTORS; v++) {
        VecMask kept = ~(b->vectors[v] <= 0);  // also where it is NaN
        b->vectors[v] = (Vec)((VecMask)b->vectors[v] & kept);
    }
}

static dim_t image_size(const Depthwise* d) { return d->height * d->width * d->channels; }

static dim_t output_size(const Depthwise* d) { return d->output_height * d->output_width * d->channels; }

static dim_t work(const Depthwise* d) { return 2 * d->examples * output_size(d) * d->kernel_height * d->kernel_width; }

// A range of taps along one axis.
typedef struct {
    dim_t first, end;
} Range;

// The taps that lie within `size` pixels if the first one lies at `start`.
static inline Range taps_inside(dim_t start, dim_t size, dim_t taps) {
    return (Range){max(0, -start), min(taps, size - start)};
}

// The taps through which a pixel, `position` pixels after the first one with padding, reaches an output. Every
// stride-th tap, from the first on, does.
static inline Range taps_to_outputs(dim_t position, dim_t outputs, dim_t stride, dim_t taps) {
    dim_t least = max(0, position - (outputs - 1) * stride);
    dim_t phase = stride == 1 ? 0 : (position - least) % stride;
    return (Range){least + phase, min(taps, position + 1)};
}

// Computes `pixels` neighboring outputs, which are independent and share each load of the kernel. `rows` and `columns`
// are the taps inside the image, and `src` is the pixel under the first tap of the first output. `pixels` is a constant
// in every call, and so is `count` in the calls for whole blocks.
static inline __attribute__((always_inline)) void forward_pixels(const Depthwise* d, const float* src,
                                                                 const float* kernel, Block bias, Range rows,
                                                                 Range columns, dim_t pixels, dim_t count,
                                                                 float* output) {
    Block sums[PIXELS] = {0};
    for (dim_t i = rows.first; i < rows.end; i++)
        for (dim_t j = columns.first; j < columns.end; j++) {
            Block tap = load(kernel + (i * d->kernel_width + j) * d->channels, count);
            const float* own = src + (i * d->width + j) * d->channels;
            for (dim_t p = 0; p < pixels; p++)
                add_product(load(own + p * d->stride * d->channels, count), tap, &sums[p]);
        }
    for (dim_t p = 0; p < pixels; p++) {
        add(bias, &sums[p]);
        if (d->relu) rectify(&sums[p]);
        store(&sums[p], count, output + p * d->channels);
    }
}

static inline __attribute__((always_inline)) void forward_block(const Depthwise* d, dim_t n, dim_t first, dim_t count) {
    const float *image = d->image + n * image_size(d) + first, *kernel = d->kernel + first;
    float* output = d->result + n * output_size(d) + first;
    Block bias = load(d->bias + first, count);
    for (dim_t y = 0; y < d->output_height; y++) {
        dim_t top = y * d->stride - d->top;
        Range rows = taps_inside(top, d->height, d->kernel_height);
        for (dim_t x = 0; x < d->output_width;) {
            dim_t left = x * d->stride - d->left, last = left + (PIXELS - 1) * d->stride;
            const float* src = image + (top * d->width + left) * d->channels;
            if (left >= 0 && last + d->kernel_width <= d->width && x + PIXELS <= d->output_width) {
                Range columns = {0, d->kernel_width};
                forward_pixels(d, src, kernel, bias, rows, columns, PIXELS, count, output);
                x += PIXELS, output += PIXELS * d->channels;
            } else {
                Range columns = taps_inside(left, d->width, d->kernel_width);
                forward_pixels(d, src, kernel, bias, rows, columns, 1, count, output);
                x++, output += d->channels;
            }
        }
    }
}

// Computes `pixels` neighboring pixels, as `forward_pixels` does. Tap (i, j) takes the gradient of the output at
// (row - i, column - j) / stride; the remainders are 0.
static inline __attribute__((always_inline)) void image_gradient_pixels(const Depthwise* d, const float* gradient,
                                                                        const float* kernel, dim_t row, dim_t column,
                                                                        Range rows, Range columns, dim_t pixels,
                                                                        dim_t count, float* result) {
    dim_t first_row = row - rows.first, first_column = column - columns.first;
    if (d->stride > 1) first_row /= d->stride, first_column /= d->stride;
    Block sums[PIXELS] = {0};
    for (dim_t i = rows.first; i < rows.end; i += d->stride, first_row--) {
        const float* own = gradient + (first_row * d->output_width + first_column) * d->channels;
        for (dim_t j = columns.first; j < columns.end; j += d->stride, own -= d->channels) {
            Block tap = load(kernel + (i * d->kernel_width + j) * d->channels, count);
            for (dim_t p = 0; p < pixels; p++) add_product(load(own + p * d->channels, count), tap, &sums[p]);
        }
    }
    for (dim_t p = 0; p < pixels; p++) store(&sums[p], count, result + p * d->channels);
}

static inline __attribute__((always_inline)) void image_gradient_block(const Depthwise* d, dim_t n, dim_t first,
                                                                       dim_t count) {
    const float *gradient = d->gradient + n * output_size(d) + first, *kernel = d->kernel + first;
    float* result = d->result + n * image_size(d) + first;
    for (dim_t y = 0; y < d->height; y++) {
        dim_t row = y + d->top;
        Range rows = taps_to_outputs(row, d->output_height, d->stride, d->kernel_height);
        for (dim_t x = 0; x < d->width;) {
            dim_t column = x + d->left, last = column + PIXELS - 1;
            if (d->stride == 1 && column + 1 >= d->kernel_width && last < d->output_width && x + PIXELS <= d->width) {
                Range columns = {0, d->kernel_width};
                image_gradient_pixels(d, gradient, kernel, row, column, rows, columns, PIXELS, count, result);
                x += PIXELS, result += PIXELS * d->channels;
            } else {
                Range columns = taps_to_outputs(column, d->output_width, d->stride, d->kernel_width);
                image_gradient_pixels(d, gradient, kernel, row, column, rows, columns, 1, count, result);
                x++, result += d->channels;
            }
        }
    }
}

// Computes the sums of example n for the taps and, after them, for the bias.
static inline __attribute__((always_inline)) void kernel_gradient_block(const Depthwise* d, const float* image,
                                                                        const float* gradient, dim_t count,
                                                                        float* sums) {
    for (dim_t i = 0; i < d->kernel_height; i++)
        for (dim_t j = 0; j < d->kernel_width; j++, sums += d->channels) {
            // The outputs that this tap reaches, as a range along each axis.
            dim_t first_row = max(0, ceil_div(d->top - i, d->stride));
            dim_t first_column = max(0, ceil_div(d->left - j, d->stride));
            dim_t last_row = d->height - 1 + d->top - i, last_column = d->width - 1 + d->left - j;
            dim_t end_row = last_row < 0 ? 0 : min(d->output_height, last_row / d->stride + 1);
            dim_t end_column = last_column < 0 ? 0 : min(d->output_width, last_column / d->stride + 1);
            Block chains[CHAINS] = {0};
            for (dim_t y = first_row; y < end_row; y++) {
                const float* row = image + (y * d->stride + i - d->top) * d->width * d->channels;
                const float* src = row + (first_column * d->stride + j - d->left) * d->channels;
                const float* own = gradient + (y * d->output_width + first_column) * d->channels;
                dim_t step = d->stride * d->channels, x = first_column;
                for (; x + CHAINS <= end_column; x += CHAINS)
                    for (int chain = 0; chain < CHAINS; chain++, src += step, own += d->channels)
                        add_product(load(src, count), load(own, count), &chains[chain]);
                for (; x < end_column; x++, src += step, own += d->channels)
                    add_product(load(src, count), load(own, count), &chains[0]);
            }
            for (int chain = 1; chain < CHAINS; chain++) add(chains[chain], &chains[0]);
            store(&chains[0], count, sums);
        }
    Block chains[CHAINS] = {0};
    for (dim_t pixel = 0; pixel < d->output_height * d->output_width; pixel++)
        add(load(gradient + pixel * d->channels, count), &chains[pixel % CHAINS]);
    for (int chain = 1; chain < CHAINS; chain++) add(chains[chain], &chains[0]);
    store(&chains[0], count, sums);
}

typedef struct {
    Depthwise layer;
    float* sums;  // [example][tap or bias][channel]
} Task;

static void forward_example(const void* context, dim_t n) {
    const Depthwise* d = context;
    dim_t first = 0;
    for (; first + BLOCK <= d->channels; first += BLOCK) forward_block(d, n, first, BLOCK);
    if (first < d->channels) forward_block(d, n, first, d->channels - first);
}

static void image_gradient_example(const void* context, dim_t n) {
    const Depthwise* d = context;
    dim_t first = 0;
    for (; first + BLOCK <= d->channels; first += BLOCK) image_gradient_block(d, n, first, BLOCK);
    if (first < d->channels) image_gradient_block(d, n, first, d->channels - first);
}

static void kernel_gradient_example(const void* context, dim_t n) {
    const Task* task = context;
    const Depthwise* d = &task->layer;
    const float *image = d->image + n * image_size(d), *gradient = d->gradient + n * output_size(d);
    float* sums = task->sums + n * (d->kernel_height * d->kernel_width + 1) * d->channels;
    dim_t first = 0;
    for (; first + BLOCK <= d->channels; first += BLOCK)
        kernel_gradient_block(d, image + first, gradient + first, BLOCK, sums + first);
    if (first < d->channels)
        kernel_gradient_block(d, image + first, gradient + first, d->channels - first, sums + first);
}

void depthwise(XLA_FFI_CallFrame* frame, Depthwise d) {
    parallel_for(frame, d.examples, work(&d), forward_example, &d);
}

void depthwise_image_gradient(XLA_FFI_CallFrame* frame, Depthwise d) {
    parallel_for(frame, d.examples, work(&d), image_gradient_example, &d);
}

void depthwise_kernel_gradient(XLA_FFI_CallFrame* frame, Depthwise d, float* bias_gradient) {
    dim_t size = d.kernel_height * d.kernel_width * d.channels, stride = size + d.channels;
    Task task = {d, scratch(SCRATCH_SHARED, d.examples * stride)};
    parallel_for(frame, d.examples, work(&d), kernel_gradient_example, &task);
    memset(d.result, 0, size * sizeof(float));
    memset(bias_gradient, 0, d.channels * sizeof(float));
    for (dim_t n = 0; n < d.examples; n++) {
        for (dim_t i = 0; i < size; i++) d.result[i] += task.sums[n * stride + i];
        for (dim_t c = 0; c < d.channels; c++) bias_gradient[c] += task.sums[n * stride + size + c];
    }
}
