// Dense layers: output[example][feature] = sum over inputs of x[example][input] * kernel[input][feature] + bias.

#pragma once
#include "product.h"
#include "threads.h"

enum { DEPTH = 4096 / BLOCK };  // terms of a sum whose operands stay in the first-level cache
enum { TILES = 8 };    // that make a turn
enum { GROUP = 192 };  // examples whose inputs stay in the second-level cache

typedef struct {
    Size examples, inputs, features;
    const float *x, *kernel, *bias, *gradient, *active, *packed;
    int relu;
    float* result;
} Dense;

static Size work_of(Dense d) { return d.examples * d.inputs * d.features; }

// The output of a group of examples, a block of features.
static void dense_features(const void* given, Size number) {
    Dense d = *(const Dense*)given;
    Size blocks = ratio_up(d.features, BLOCK), first = number % blocks * BLOCK;
    Size width = smaller(BLOCK, d.features - first), skipped = number / blocks * GROUP;
    Size examples = smaller(GROUP, d.examples - skipped);
    const float* x = d.x + skipped * d.inputs;
    float *packed = scratch(OWN, (DEPTH + GROUP + ROWS) * BLOCK), *to = d.result + skipped * d.features + first;
    Vector(*total)[VECTORS] = (void*)(packed + DEPTH * BLOCK), bias[VECTORS];
    load(d.bias + first, width, bias);
    memset(total, 0, examples * sizeof(*total));
    for (Size input = 0; input < d.inputs; input += DEPTH) {
        Size depth = smaller(DEPTH, d.inputs - input);
        pack(d.kernel + input * d.features + first, depth, d.features, width, packed);
        for (Size n = 0; n < examples; n += ROWS) {
            Size rows = smaller(ROWS, examples - n);
            const float* left[ROWS];
            for (Size i = 0; i < ROWS; i++) left[i] = x + (n + smaller(i, rows - 1)) * d.inputs + input;
            multiply(rows, width, left, (Terms){1, depth, 1, 0}, packed, total + n);
        }
    }
    for (Size n = 0; n < examples; n++) store_output(total[n], bias, d.relu, width, to + n * d.features);
}

static void dense(XLA_FFI_CallFrame* frame, Dense given) {
    Size turns = ratio_up(given.features, BLOCK) * ratio_up(given.examples, GROUP);
    share_out(frame, turns, work_of(given), dense_features, &given);
}

// The gradient of some inputs of all examples: rows of the kernel times the transposed gradient of the output.
static void dense_inputs(const void* given, Size number) {
    Dense d = *(const Dense*)given;
    Size skipped = number * TILES * ROWS, inputs = smaller(TILES * ROWS, d.inputs - skipped);
    Vector total[TILES * ROWS][VECTORS];
    for (Size n = 0; n < d.examples; n += BLOCK) {
        Size width = smaller(BLOCK, d.examples - n);
        memset(total, 0, sizeof(total));
        for (Size feature = 0; feature < d.features; feature += DEPTH) {
            Terms terms = {1, smaller(DEPTH, d.features - feature), 1, 0};
            for (Size input = 0; input < inputs; input += ROWS) {
                Size rows = smaller(ROWS, inputs - input);
                const float* left[ROWS];
                for (Size i = 0; i < ROWS; i++)
                    left[i] = d.kernel + (skipped + input + smaller(i, rows - 1)) * d.features + feature;
                multiply(rows, width, left, terms, d.packed + n * d.features + feature * BLOCK, total + input);
            }
        }
        transpose((const float*)total, NULL, inputs, width, BLOCK, d.result + n * d.inputs + skipped, d.inputs);
    }
}

static void dense_input_gradient(XLA_FFI_CallFrame* frame, Dense d) {
    float* packed = scratch(SHARED, ratio_up(d.examples, BLOCK) * BLOCK * d.features);
    d.packed = packed;
    for (Size n = 0; n < d.examples; n += BLOCK, packed += BLOCK * d.features) {
        Size width = smaller(BLOCK, d.examples - n), place = n * d.features;
        if (width < BLOCK) memset(packed, 0, BLOCK * d.features * sizeof(float));
        const float* active = d.active ? d.active + place : NULL;
        transpose(d.gradient + place, active, width, d.features, d.features, packed, BLOCK);
    }
    share_out(frame, ratio_up(d.inputs, TILES * ROWS), work_of(d), dense_inputs, &d);
}

// The gradient of the kernel's rows of some inputs.
static void dense_kernel_rows(const void* given, Size number) {
    Dense d = *(const Dense*)given;
    Size end = smaller((number + 1) * TILES * ROWS, d.inputs);
    float* inputs = scratch(OWN, d.examples * ROWS);  // side by side: their lines would push each other out of the cache
    for (Size input = number * TILES * ROWS; input < end; input += ROWS) {
        Size rows = smaller(ROWS, end - input);
        const float* left[ROWS];
        if (rows < ROWS) memset(inputs, 0, d.examples * ROWS * sizeof(float));
        for (Size n = 0; n < d.examples; n++) {
            float* to = inputs + n * ROWS;
            const float* from = d.x + n * d.inputs + input;
            if (rows == ROWS) memcpy(to, from, ROWS * sizeof(float));
            else
                for (Size i = 0; i < rows; i++) to[i] = from[i];
        }
        for (Size i = 0; i < ROWS; i++) left[i] = inputs + i;
        for (Size first = 0; first < d.features; first += BLOCK) {
            Size width = smaller(BLOCK, d.features - first);
            Vector total[ROWS][VECTORS] = {0};
            multiply(rows, width, left, (Terms){1, d.examples, ROWS, 0}, d.packed + first * d.examples, total);
            for (Size i = 0; i < rows; i++) store(total[i], width, d.result + (input + i) * d.features + first);
        }
    }
}

static void dense_kernel_gradient(XLA_FFI_CallFrame* frame, Dense d, float* to_bias) {
    float* packed = scratch(SHARED, ratio_up(d.features, BLOCK) * BLOCK * d.examples);
    d.packed = packed;
    for (Size first = 0; first < d.features; first += BLOCK) {
        Size width = smaller(BLOCK, d.features - first);
        Vector bias[VECTORS] = {0};
        pack_gradient(d.gradient + first, d.active ? d.active + first : NULL, d.examples, d.features, width,
                      packed + first * d.examples, bias);
        store(bias, width, to_bias + first);
    }
    share_out(frame, ratio_up(d.inputs, TILES * ROWS), work_of(d), dense_kernel_rows, &d);
}
