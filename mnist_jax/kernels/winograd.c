#include "winograd.h"

#include "gemm.h"
#include "memory.h"
#include "parallel_for.h"

enum {
    POSITIONS = 16,  // of a transformed tile of 4x4 pixels; each has a product of its own
    GROUP = 24,      // tiles that are transformed together, so that their products find them in the caches
    CHANNELS = 16,   // the channels must be a multiple of this, and so fill vectors of every width
};

typedef struct {
    ConvShape shape;
    dim_t rows, columns;  // tiles of 2x2 outputs
    const float *image, *relu_output, *kernel, *bias;
    int relu;
    float* output;
} Winograd;

int winograd_pays(ConvShape s) {
    return s.kernel_height == 3 && s.kernel_width == 3 && s.channels % CHANNELS == 0 && s.channels >= 32 &&
           s.features >= 32;
}

// dst = B^T src B: the transform of a tile of 4x4 pixels of LANES channels.
static inline void transform_tile(const float* src, dim_t row_stride, dim_t column_stride, float* dst,
                                  dim_t dst_stride) {
    Vec t[4][4];
    for (int j = 0; j < 4; j++) {
        Vec d[4];
        for (int i = 0; i < 4; i++) d[i] = *(const VecUnaligned*)&src[i * row_stride + j * column_stride];
        t[0][j] = d[0] - d[2];
        t[1][j] = d[1] + d[2];
        t[2][j] = d[2] - d[1];
        t[3][j] = d[1] - d[3];
    }
    for (int i = 0; i < 4; i++, dst += 4 * dst_stride) {
        *(Vec*)&dst[0] = t[i][0] - t[i][2];
        *(Vec*)&dst[dst_stride] = t[i][1] + t[i][2];
        *(Vec*)&dst[2 * dst_stride] = t[i][2] - t[i][1];
        *(Vec*)&dst[3 * dst_stride] = t[i][1] - t[i][3];
    }
}

// dst = G g
static inline void transform_taps(const Vec g[3], Vec dst[4]) {
    dst[0] = g[0];
    dst[1] = (g[0] + g[1] + g[2]) * 0.5f;
    dst[2] = (g[0] - g[1] + g[2]) * 0.5f;
    dst[3] = g[2];
}

// dst = G packed G^T, where `packed` has the 9 taps of all channels, as pack_kernel returns them.
static void transform_kernel(const float* packed, dim_t channels, float* dst) {
    for (dim_t c = 0; c < channels; c++)
        for (int v = 0; v < NR_VECTORS; v++) {
            dim_t offset = c * NR + v * LANES, stride = channels * NR;
            Vec columns[3][4], rows[4];
            for (int j = 0; j < 3; j++) {
                Vec taps[3];
                for (int i = 0; i < 3; i++) taps[i] = *(const Vec*)&packed[(3 * i + j) * stride + offset];
                transform_taps(taps, columns[j]);
            }
            for (int i = 0; i < 4; i++) {
                transform_taps((Vec[3]){columns[0][i], columns[1][i], columns[2][i]}, rows);
                for (int j = 0; j < 4; j++) *(Vec*)&dst[(4 * i + j) * stride + offset] = rows[j];
            }
        }
}

// Stores A^T products A plus the bias: the 2x2 outputs of a tile, of which `height` x `width` exist.
static inline void store_tile(const Vec products[POSITIONS][GROUP][NR_VECTORS], dim_t tile, const Vec bias[NR_VECTORS],
                              int relu, dim_t cols, float* dst, dim_t row_stride, dim_t column_stride, dim_t height,
                              dim_t width) {
    Vec outputs[2][2][NR_VECTORS];
    for (int v = 0; v < NR_VECTORS; v++) {
        Vec t[2][4];
        for (int j = 0; j < 4; j++) {
            Vec m[4];
            for (int i = 0; i < 4; i++) m[i] = products[4 * i + j][tile][v];
            t[0][j] = m[0] + m[1] + m[2];
            t[1][j] = m[1] - m[2] - m[3];
        }
        for (int i = 0; i < 2; i++) {
            outputs[i][0][v] = t[i][0] + t[i][1] + t[i][2];
            outputs[i][1][v] = t[i][1] - t[i][2] - t[i][3];
        }
    }
    for (dim_t i = 0; i < height; i++)
        for (dim_t j = 0; j < width; j++)
            store_output(outputs[i][j], bias, relu, cols, dst + i * row_stride + j * column_stride);
}

// Computes the products and the outputs of `tiles` transformed tiles, starting with tile `first`, of example n.
static void convolve_tiles(const Winograd* w, dim_t n, dim_t first, dim_t tiles, const float* transformed,
                           Vec products[POSITIONS][GROUP][NR_VECTORS]) {
    ConvShape s = w->shape;
    Reduction channels = {.outer_count = 1, .inner_count = s.channels, .inner_stride = 1};
    for (dim_t feature = 0; feature < s.features; feature += NR) {
        dim_t cols = min(NR, s.features - feature);
        const float* kernel = w->kernel + feature * POSITIONS * s.channels;
        for (dim_t position = 0; position < POSITIONS; position++) {
            const float* x = transformed + position * GROUP * s.channels;
            for (dim_t tile = 0; tile < tiles; tile += MR) {
                const float* a[MR];
                for (dim_t i = 0; i < MR; i++) a[i] = x + min(tile + i, tiles - 1) * s.channels;
                gemm_tile(min(MR, tiles - tile), cols, a, channels, kernel + position * s.channels * NR,
                          products[position] + tile);
            }
        }
        Vec bias[NR_VECTORS] = {0};
        if (w->bias != NULL) load_row(w->bias + feature, cols, bias);
        for (dim_t tile = 0; tile < tiles; tile++) {
            dim_t y = (first + tile) / w->columns * 2, x = (first + tile) % w->columns * 2;
            float* output = w->output + ((n * s.out_height + y) * s.out_width + x) * s.features + feature;
            store_tile((const void*)products, tile, bias, w->relu, cols, output, s.out_width * s.features, s.features,
                       min(2, s.out_height - y), min(2, s.out_width - x));
        }
    }
}

static void convolve_example(const void* context, dim_t n) {
    const Winograd* w = context;
    ConvShape s = w->shape;
    dim_t transformed_size = POSITIONS * GROUP * s.channels, products_size = POSITIONS * GROUP * NR;
    float* transformed = scratch(SCRATCH_LOCAL, transformed_size + products_size + s.padded_size);
    float *products = transformed + transformed_size, *padded = products + products_size;
    dim_t size = s.height * s.width * s.channels, row_stride = s.padded_width * s.channels;
    const float* image = pad(w->image + n * size, w->relu_output ? w->relu_output + n * size : NULL, s, padded);
    for (dim_t first = 0; first < w->rows * w->columns; first += GROUP) {
        dim_t tiles = min(GROUP, w->rows * w->columns - first);
        for (dim_t tile = 0; tile < tiles; tile++) {
            dim_t y = (first + tile) / w->columns * 2, x = (first + tile) % w->columns * 2;
            for (dim_t c = 0; c < s.channels; c += LANES)
                transform_tile(image + y * row_stride + x * s.channels + c, row_stride, s.channels,
                               transformed + tile * s.channels + c, GROUP * s.channels);
        }
        convolve_tiles(w, n, first, tiles, transformed, (void*)products);
    }
}

void winograd_convolve(XLA_FFI_CallFrame* frame, ConvShape s, const float* image, const float* relu_output,
                       const float* kernel, int flipped, const float* bias, int relu, float* output) {
    dim_t rows = ceil_div(s.out_height, 2), columns = ceil_div(s.out_width, 2);
    Winograd context = {s, rows, columns, image, relu_output, NULL, bias, relu, output};
    // Whole tiles need up to one more row and column of padding.
    context.shape.padded_width = 2 * columns + 2;
    context.shape.padded_size = (2 * rows + 2) * context.shape.padded_width * s.channels;
    dim_t size = POSITIONS * s.channels * NR;
    float* transformed = scratch(SCRATCH_SHARED, ceil_div(s.features, NR) * size + s.taps * NR);
    float* packed = transformed + ceil_div(s.features, NR) * size;
    for (dim_t first = 0; first < s.features; first += NR) {
        pack_kernel(kernel, s, first, min(NR, s.features - first), flipped, packed);
        transform_kernel(packed, s.channels, transformed + first * POSITIONS * s.channels);
    }
    context.kernel = transformed;
    parallel_for(frame, s.examples, s.work, convolve_example, &context);
}
