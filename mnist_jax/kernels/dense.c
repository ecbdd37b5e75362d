#include "dense.h"

#include "gemm.h"
#include "memory.h"
#include "parallel_for.h"

enum {
    KC = 4096 / NR,      // terms of a sum whose packed operand (KC x NR floats, 16 KiB) stays in the L1 cache
    MC = 264,            // examples whose inputs stay in the L2 cache
    TASK_ROWS = 8 * MR,  // inputs per task of a gradient: 8 tiles
    FEW_EXAMPLES = 2,    // at most: packing the kernel would take longer than multiplying by it
};

typedef struct {
    Dense layer;
    const float* packed;  // the right operand of the product
} Task;

static dim_t work(Dense d) { return d.examples * d.inputs * d.features; }

// Multiplies one example by NR features of a kernel that is not packed; takes the sums in the order of gemm_tile.
static void multiply_in_place(const float* x, const float* kernel, Dense d, dim_t cols, Vec sums[NR_VECTORS]) {
    for (int v = 0; v < NR_VECTORS; v++) sums[v] = (Vec){0};
    for (dim_t input = 0; input < d.inputs; input++) {
        Vec row[NR_VECTORS];
        load_row(kernel + input * d.features, cols, row);
        for (int v = 0; v < NR_VECTORS; v++) sums[v] += x[input] * row[v];
    }
}

// Task: the output of one block of features for a group of MC examples.
static void forward_block(const void* context, dim_t index) {
    Dense d = *(const Dense*)context;
    dim_t feature_blocks = ceil_div(d.features, NR), first_feature = index % feature_blocks * NR;
    dim_t cols = min(NR, d.features - first_feature), first_example = index / feature_blocks * MC;
    dim_t examples = min(MC, d.examples - first_example);
    const float* x = d.x + first_example * d.inputs;
    float* output = d.result + first_example * d.features + first_feature;
    float* packed = scratch(SCRATCH_LOCAL, (KC + MC + MR) * NR);
    Vec(*sums)[NR_VECTORS] = (void*)(packed + KC * NR), bias[NR_VECTORS];
    load_row(d.bias + first_feature, cols, bias);
    dim_t block = ceil_div(d.inputs, ceil_div(d.inputs, KC));  // equal blocks
    for (dim_t n = 0; n < examples && d.examples <= FEW_EXAMPLES; n++)
        multiply_in_place(x + n * d.inputs, d.kernel + first_feature, d, cols, sums[n]);
    for (dim_t input = 0; input < d.inputs && d.examples > FEW_EXAMPLES; input += block) {
        Reduction inputs = {
            .outer_count = 1,
            .inner_count = min(block, d.inputs - input),
            .inner_stride = 1,
            .continued = input > 0,
        };
        pack(d.kernel + input * d.features + first_feature, inputs.inner_count, d.features, cols, packed);
        for (dim_t n = 0; n < examples; n += MR) {
            dim_t rows = min(MR, examples - n);
            const float* a[MR];
            for (dim_t i = 0; i < MR; i++) a[i] = x + (n + min(i, rows - 1)) * d.inputs + input;
            gemm_tile(rows, cols, a, inputs, packed, sums + n);
        }
    }
    for (dim_t n = 0; n < examples; n++) store_output(sums[n], bias, d.relu, cols, output + n * d.features);
}

void dense_forward(XLA_FFI_CallFrame* frame, Dense d) {
    parallel_for(frame, ceil_div(d.features, NR) * ceil_div(d.examples, MC), work(d), forward_block, &d);
}

// Task: the gradient of TASK_ROWS inputs of all examples, as rows of the kernel times the transposed gradient.
static void input_gradient_block(const void* context, dim_t index) {
    const Task* task = context;
    Dense d = task->layer;
    dim_t first_input = index * TASK_ROWS, inputs = min(TASK_ROWS, d.inputs - first_input);
    Vec sums[TASK_ROWS][NR_VECTORS];
    for (dim_t n = 0; n < d.examples; n += NR) {
        dim_t cols = min(NR, d.examples - n);
        for (dim_t feature = 0; feature < d.features; feature += KC) {
            Reduction features = {
                .outer_count = 1,
                .inner_count = min(KC, d.features - feature),
                .inner_stride = 1,
                .continued = feature > 0,
            };
            const float* packed = task->packed + n * d.features + feature * NR;
            for (dim_t input = 0; input < inputs; input += MR) {
                dim_t rows = min(MR, inputs - input);
                const float* a[MR];
                for (dim_t i = 0; i < MR; i++)
                    a[i] = d.kernel + (first_input + input + min(i, rows - 1)) * d.features + feature;
                gemm_tile(rows, cols, a, features, packed, sums + input);
            }
        }
        transpose((const float*)sums, NULL, inputs, cols, NR, d.result + n * d.inputs + first_input, d.inputs);
    }
}

void dense_input_gradient(XLA_FFI_CallFrame* frame, Dense d) {
    float* packed = scratch(SCRATCH_SHARED, ceil_div(d.examples, NR) * NR * d.features);
    Task context = {d, packed};
    for (dim_t n = 0; n < d.examples; n += NR, packed += NR * d.features) {
        dim_t cols = min(NR, d.examples - n), offset = n * d.features;
        if (cols < NR) memset(packed, 0, NR * d.features * sizeof(float));
        const float* relu_output = d.relu_output ? d.relu_output + offset : NULL;
        transpose(d.gradient + offset, relu_output, cols, d.features, d.features, packed, NR);
    }
    parallel_for(frame, ceil_div(d.inputs, TASK_ROWS), work(d), input_gradient_block, &context);
}

// Task: the kernel gradient of TASK_ROWS inputs.
static void kernel_gradient_block(const void* context, dim_t index) {
    const Task* task = context;
    Dense d = task->layer;
    dim_t end = min((index + 1) * TASK_ROWS, d.inputs);
    Reduction examples = {.outer_count = 1, .inner_count = d.examples, .inner_stride = MR};
    // MR inputs of every example, side by side: read in place, their cache lines would evict each other.
    float* x = scratch(SCRATCH_LOCAL, d.examples * MR);
    for (dim_t input = index * TASK_ROWS; input < end; input += MR) {
        dim_t rows = min(MR, end - input);
        if (rows < MR) memset(x, 0, d.examples * MR * sizeof(float));
        for (dim_t n = 0; n < d.examples; n++) {
            float* dst = x + n * MR;
            const float* src = d.x + n * d.inputs + input;
            if (rows == MR) {
                memcpy(dst, src, MR * sizeof(float));
            } else {
                for (dim_t i = 0; i < rows; i++) dst[i] = src[i];
            }
        }
        const float* a[MR];
        for (dim_t i = 0; i < MR; i++) a[i] = x + i;
        for (dim_t first = 0; first < d.features; first += NR) {
            dim_t cols = min(NR, d.features - first);
            Vec sums[MR][NR_VECTORS];
            gemm_tile(rows, cols, a, examples, task->packed + first * d.examples, sums);
            for (dim_t i = 0; i < rows; i++) store_row(sums[i], cols, d.result + (input + i) * d.features + first);
        }
    }
}

void dense_kernel_gradient(XLA_FFI_CallFrame* frame, Dense d, float* bias_gradient) {
    float* packed = scratch(SCRATCH_SHARED, ceil_div(d.features, NR) * NR * d.examples);
    for (dim_t first = 0; first < d.features; first += NR) {
        dim_t cols = min(NR, d.features - first);
        Vec bias_sums[NR_VECTORS] = {0};
        pack_gradient(d.gradient + first, d.relu_output ? d.relu_output + first : NULL, d.examples, d.features, cols,
                      packed + first * d.examples, bias_sums);
        store_row(bias_sums, cols, bias_gradient + first);
    }
    Task context = {d, packed};
    parallel_for(frame, ceil_div(d.inputs, TASK_ROWS), work(d), kernel_gradient_block, &context);
}
