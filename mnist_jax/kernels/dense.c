#include "dense.h"

#include "gemm.h"
#include "memory.h"
#include "parallel_for.h"

enum {
    KC = 4096 / NR,      // terms of a sum whose packed operand (KC x NR floats, 16 KiB) stays in the L1 cache
    MC = 120,            // examples per task, a multiple of MR; KC inputs of each stay in the L2 cache
    FC = 64,             // features per task, a multiple of NR
    PACK_ROWS = 32,      // inputs per task that packs the kernel
    TASK_ROWS = 8 * MR,  // inputs per task of a gradient: 8 tiles
    FEW_EXAMPLES = 2,    // at most: packing the kernel would take longer than multiplying by it
};

typedef struct {
    Dense layer;
    float* packed;  // the right operand of the product
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

// Task: the output of NR features of all examples, which are few.
static void forward_in_place(const void* context, dim_t index) {
    Dense d = *(const Dense*)context;
    dim_t feature = index * NR, cols = min(NR, d.features - feature);
    Vec sums[NR_VECTORS], bias[NR_VECTORS];
    load_row(d.bias + feature, cols, bias);
    for (dim_t n = 0; n < d.examples; n++) {
        multiply_in_place(d.x + n * d.inputs, d.kernel + feature, d, cols, sums);
        store_output(sums, bias, d.relu, cols, d.result + n * d.features + feature);
    }
}

// Task: packs PACK_ROWS rows of the kernel. The packed kernel consists of panels of NR features and all inputs.
static void pack_kernel(const void* context, dim_t index) {
    const Task* task = context;
    Dense d = task->layer;
    dim_t input = index * PACK_ROWS, rows = min(PACK_ROWS, d.inputs - input);
    for (dim_t feature = 0; feature < d.features; feature += NR)
        pack(d.kernel + input * d.features + feature, rows, d.features, min(NR, d.features - feature),
             task->packed + feature * d.inputs + input * NR);
}

// Task: the output of up to FC features for up to MC examples.
static void forward_block(const void* context, dim_t index) {
    const Task* task = context;
    Dense d = task->layer;
    dim_t groups = ceil_div(d.examples, MC), group = MR * ceil_div(ceil_div(d.examples, groups), MR);
    dim_t first_example = index % groups * group, first_feature = index / groups * FC;
    dim_t examples = min(group, d.examples - first_example), end = min(first_feature + FC, d.features);
    Vec(*sums)[NR_VECTORS] = (void*)scratch(SCRATCH_LOCAL, (MC + MR) * FC);
    dim_t block = ceil_div(d.inputs, ceil_div(d.inputs, KC));  // equal blocks
    for (dim_t input = 0; input < d.inputs; input += block) {
        Reduction inputs = {
            .outer_count = 1,
            .inner_count = min(block, d.inputs - input),
            .inner_stride = 1,
            .continued = input > 0,
        };
        const float* x = d.x + first_example * d.inputs + input;
        for (dim_t feature = first_feature; feature < end; feature += NR) {
            Vec(*tile)[NR_VECTORS] = sums + (feature - first_feature) / NR * (MC + MR);
            for (dim_t n = 0; n < examples; n += MR) {
                dim_t rows = min(MR, examples - n);
                const float* a[MR];
                for (dim_t i = 0; i < MR; i++) a[i] = x + (n + min(i, rows - 1)) * d.inputs;
                gemm_tile(rows, min(NR, end - feature), a, inputs, task->packed + feature * d.inputs + input * NR,
                          tile + n);
            }
        }
    }
    for (dim_t feature = first_feature; feature < end; feature += NR) {
        Vec(*tile)[NR_VECTORS] = sums + (feature - first_feature) / NR * (MC + MR), bias[NR_VECTORS];
        dim_t cols = min(NR, end - feature);
        load_row(d.bias + feature, cols, bias);
        for (dim_t n = 0; n < examples; n++)
            store_output(tile[n], bias, d.relu, cols, d.result + (first_example + n) * d.features + feature);
    }
}

void dense_forward(XLA_FFI_CallFrame* frame, Dense d) {
    if (d.examples <= FEW_EXAMPLES) {
        parallel_for(frame, ceil_div(d.features, NR), work(d), forward_in_place, &d);
        return;
    }
    Task task = {d, scratch(SCRATCH_SHARED, ceil_div(d.features, NR) * NR * d.inputs)};
    parallel_for(frame, ceil_div(d.inputs, PACK_ROWS), work(d), pack_kernel, &task);
    parallel_for(frame, ceil_div(d.examples, MC) * ceil_div(d.features, FC), work(d), forward_block, &task);
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
