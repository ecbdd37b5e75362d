// Runs in parallel over examples. Sums are taken per image row, then per example, then over the examples in order:
// short sums have smaller rounding errors, and the order does not depend on the threads.

#include "batch_norm.h"

#include "memory.h"
#include "parallel_for.h"

typedef struct {
    BatchNorm norm;
    float* example_sums;  // [example][2][channel]: two sums per example and channel
} Task;

static dim_t image_size(BatchNorm norm) { return norm.height * norm.width * norm.channels; }

static void parallel_for_examples(XLA_FFI_CallFrame* frame, const Task* task, LoopBody* body) {
    dim_t values = task->norm.examples * image_size(task->norm);
    parallel_for(frame, task->norm.examples, 4 * values, body, task);  // Weighted by 4: it is memory-bound.
}

static Task make_task(BatchNorm norm) {
    return (Task){norm, scratch(SCRATCH_SHARED, 2 * norm.examples * norm.channels)};
}

// dst[c] = sum over the examples of example_sums[example][which][c].
static void add_examples(const Task* task, dim_t which, float* restrict dst) {
    dim_t channels = task->norm.channels;
    memset(dst, 0, channels * sizeof(float));
    for (dim_t n = 0; n < task->norm.examples; n++)
        for (dim_t c = 0; c < channels; c++) dst[c] += task->example_sums[(2 * n + which) * channels + c];
}

static void moments_of_example(const void* context, dim_t n) {
    Task task = *(const Task*)context;
    BatchNorm norm = task.norm;
    const float* restrict x = norm.x + n * image_size(norm);
    float* restrict sum = task.example_sums + 2 * n * norm.channels, * restrict squares = sum + norm.channels;
    float* restrict row_sum = scratch(SCRATCH_LOCAL, 2 * norm.channels);
    float* restrict row_squares = row_sum + norm.channels;
    memset(sum, 0, 2 * norm.channels * sizeof(float));
    for (dim_t y = 0; y < norm.height; y++) {
        memset(row_sum, 0, 2 * norm.channels * sizeof(float));
        for (dim_t i = 0; i < norm.width; i++, x += norm.channels)
            for (dim_t c = 0; c < norm.channels; c++) row_sum[c] += x[c], row_squares[c] += x[c] * x[c];
        for (dim_t c = 0; c < norm.channels; c++) sum[c] += row_sum[c], squares[c] += row_squares[c];
    }
    for (dim_t c = 0; c < 2 * norm.channels; c++) sum[c] *= norm.mask[n];
}

void moments(XLA_FFI_CallFrame* frame, BatchNorm norm, float* sum, float* sum_of_squares) {
    Task task = make_task(norm);
    parallel_for_examples(frame, &task, moments_of_example);
    add_examples(&task, 0, sum);
    add_examples(&task, 1, sum_of_squares);
}

typedef struct {
    BatchNorm norm;
    const float *sum_gradient, *squares_gradient;
} MomentsGradient;

static void moments_gradient_of_example(const void* context, dim_t n) {
    MomentsGradient g = *(const MomentsGradient*)context;
    const float* restrict x = g.norm.x + n * image_size(g.norm);
    const float* restrict sum = g.sum_gradient, * restrict squares = g.squares_gradient;
    float* restrict dst = g.norm.result + n * image_size(g.norm);
    float mask = g.norm.mask[n];
    for (dim_t pixel = 0; pixel < g.norm.height * g.norm.width; pixel++, x += g.norm.channels, dst += g.norm.channels)
        for (dim_t c = 0; c < g.norm.channels; c++) dst[c] = (sum[c] + 2 * squares[c] * x[c]) * mask;
}

void moments_gradient(XLA_FFI_CallFrame* frame, BatchNorm norm, const float* sum_gradient,
                      const float* squares_gradient) {
    MomentsGradient context = {norm, sum_gradient, squares_gradient};
    parallel_for(frame, norm.examples, 4 * norm.examples * image_size(norm), moments_gradient_of_example, &context);
}

typedef struct {
    float mean, unclipped, variance, deviation, factor;  // variance = max(unclipped, 0)
} Statistics;

static void scale_to(float mean, float variance, float scale, float epsilon, Statistics* s) {
    s->mean = mean, s->variance = variance;
    s->deviation = __builtin_elementwise_sqrt(variance + epsilon);
    s->factor = scale / s->deviation;
}

static Statistics statistics(Normalization n, dim_t c) {
    Statistics s;
    float mean = n.sum[c] / n.count;
    s.unclipped = n.sum_of_squares[c] / n.count - mean * mean;
    scale_to(mean, s.unclipped <= 0 ? 0 : s.unclipped, n.scale[c], n.epsilon, &s);  // NaN is not <= 0.
    return s;
}

void normalize(Normalization n, float* factor, float* shift, float* new_mean, float* new_variance) {
    for (dim_t c = 0; c < n.channels; c++) {
        Statistics s = statistics(n, c);
        factor[c] = s.factor;
        shift[c] = n.bias[c] - s.mean * s.factor;
        new_mean[c] = n.momentum * n.moving_mean[c] + (1 - n.momentum) * s.mean;
        new_variance[c] = n.momentum * n.moving_variance[c] + (1 - n.momentum) * s.variance;
    }
}

void normalize_gradient(Normalization n, const float* factor_gradient, const float* shift_gradient,
                        const float* mean_gradient, const float* variance_gradient, float* sum_gradient,
                        float* squares_gradient, float* scale_gradient, float* bias_gradient) {
    for (dim_t c = 0; c < n.channels; c++) {
        Statistics s = statistics(n, c);
        float factor = factor_gradient[c] - s.mean * shift_gradient[c];
        // factor = scale * (variance + epsilon)^(-1/2)
        float variance = (1 - n.momentum) * variance_gradient[c] - factor * s.factor / (2 * s.deviation * s.deviation);
        if (s.unclipped <= 0) variance *= s.unclipped == 0 ? 0.5f : 0;  // as in the gradient of jnp.maximum
        float mean = (1 - n.momentum) * mean_gradient[c] - s.factor * shift_gradient[c] - 2 * s.mean * variance;
        sum_gradient[c] = mean / n.count;
        squares_gradient[c] = variance / n.count;
        scale_gradient[c] = factor / s.deviation;
        bias_gradient[c] = shift_gradient[c];
    }
}

void normalize_for_inference(Normalization n, float* factor, float* shift) {
    for (dim_t c = 0; c < n.channels; c++) {
        Statistics s;
        scale_to(n.moving_mean[c], n.moving_variance[c], n.scale[c], n.epsilon, &s);
        factor[c] = s.factor;
        shift[c] = n.bias[c] - s.mean * s.factor;
    }
}

static inline float scaled(float x, float factor, float shift) { return x * factor + shift; }

static inline __attribute__((always_inline)) void scale_example(Activation kind, const void* context, dim_t n) {
    BatchNorm norm = ((const Task*)context)->norm;
    const float* restrict x = norm.x + n * image_size(norm);
    const float* restrict factor = norm.factor, * restrict shift = norm.shift;
    float* restrict dst = norm.result + n * image_size(norm);
    for (dim_t pixel = 0; pixel < norm.height * norm.width; pixel++, x += norm.channels, dst += norm.channels)
        for (dim_t c = 0; c < norm.channels; c++) dst[c] = activation(kind, scaled(x[c], factor[c], shift[c]));
}

static inline __attribute__((always_inline)) void scale_gradient_example(Activation kind, const void* context,
                                                                         dim_t n) {
    Task task = *(const Task*)context;
    BatchNorm norm = task.norm;
    const float* restrict x = norm.x + n * image_size(norm), * restrict gradient = norm.gradient + n * image_size(norm);
    const float* restrict factor = norm.factor, * restrict shift = norm.shift;
    float* restrict dst = norm.result + n * image_size(norm);
    float* restrict factor_sum = task.example_sums + 2 * n * norm.channels;
    float* restrict shift_sum = factor_sum + norm.channels;
    float* restrict row_factor_sum = scratch(SCRATCH_LOCAL, 2 * norm.channels);
    float* restrict row_shift_sum = row_factor_sum + norm.channels;
    memset(factor_sum, 0, 2 * norm.channels * sizeof(float));
    for (dim_t y = 0; y < norm.height; y++) {
        memset(row_factor_sum, 0, 2 * norm.channels * sizeof(float));
        for (dim_t i = 0; i < norm.width; i++) {
            for (dim_t c = 0; c < norm.channels; c++) {
                float scaled_gradient = activation_gradient(kind, scaled(x[c], factor[c], shift[c]), gradient[c]);
                row_factor_sum[c] += scaled_gradient * x[c], row_shift_sum[c] += scaled_gradient;
                dst[c] = scaled_gradient * factor[c];
            }
            x += norm.channels, gradient += norm.channels, dst += norm.channels;
        }
        for (dim_t c = 0; c < norm.channels; c++) factor_sum[c] += row_factor_sum[c], shift_sum[c] += row_shift_sum[c];
    }
}

// The two functions above for each activation.
#define DEFINE(KIND)                                                                            \
    static void scale_##KIND(const void* context, dim_t n) { scale_example(KIND, context, n); } \
    static void scale_gradient_##KIND(const void* context, dim_t n) { scale_gradient_example(KIND, context, n); }
DEFINE(IDENTITY)
DEFINE(RELU)
DEFINE(LEAKY_RELU)
DEFINE(GELU)
DEFINE(SILU)
DEFINE(TANH)

static LoopBody* const SCALE[] = {scale_IDENTITY, scale_RELU, scale_LEAKY_RELU, scale_GELU, scale_SILU, scale_TANH};
static LoopBody* const SCALE_GRADIENT[] = {scale_gradient_IDENTITY, scale_gradient_RELU, scale_gradient_LEAKY_RELU,
                                           scale_gradient_GELU,     scale_gradient_SILU, scale_gradient_TANH};

void scale(XLA_FFI_CallFrame* frame, BatchNorm norm, Activation kind) {
    Task task = {norm, NULL};
    parallel_for_examples(frame, &task, SCALE[kind]);
}

void scale_gradient(XLA_FFI_CallFrame* frame, BatchNorm norm, Activation kind, float* factor_gradient,
                    float* shift_gradient) {
    Task task = make_task(norm);
    parallel_for_examples(frame, &task, SCALE_GRADIENT[kind]);
    add_examples(&task, 0, factor_gradient);
    add_examples(&task, 1, shift_gradient);
}
