// Activation functions of one number and their derivatives, made of operations that IEEE 754 fixes, so that they have
// the same bits on every processor. The compiler vectorizes loops over them.

#pragma once

typedef enum { IDENTITY, RELU, LEAKY_RELU, GELU, SILU, TANH } Activation;

static const float LEAK = 0.01f;  // slope of a leaky ReLU below 0

// e^x, with an error of at most 2 units in the last place for -87 <= x <= 88; outside, that of the nearest limit.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;  // NaN stays NaN.
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;  // ln 2 = 0.693359375 - 2.12194440e-4
    // The polynomial of Cephes's expf.
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    union {
        int bits;
        float value;
    } power = {((int)(n == n ? n : 0) + 127) << 23};
    return (p + 1.0f) * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// The argument of the sigmoid in GELU(x) = x sigmoid(...), its approximation by tanh (Hendrycks and Gimpel 2016).
static inline float gelu_argument(float x) { return 1.5957691216f * (x + 0.044715f * x * (x * x)); }

// `kind` is a compile-time constant in every call.
static inline __attribute__((always_inline)) float activation(Activation kind, float x) {
    switch (kind) {
        case IDENTITY:
            return x;
        case RELU:
            return x <= 0 ? 0 : x;  // NaN is not <= 0.
        case LEAKY_RELU:
            return x <= 0 ? LEAK * x : x;
        case GELU:
            return x * sigmoid(gelu_argument(x));
        case SILU:
            return x * sigmoid(x);
        case TANH:
            return 2.0f * sigmoid(2.0f * x) - 1.0f;
    }
    return x;
}

// The gradient of x, given that of activation(kind, x).
static inline __attribute__((always_inline)) float activation_gradient(Activation kind, float x, float gradient) {
    float s;
    switch (kind) {
        case IDENTITY:
            return gradient;
        case RELU:
            return x > 0 ? gradient : 0;
        case LEAKY_RELU:
            return x > 0 ? gradient : LEAK * gradient;
        case GELU:
            s = sigmoid(gelu_argument(x));
            return gradient * (s + x * s * (1.0f - s) * (1.5957691216f + 0.2140645f * x * x));
        case SILU:
            s = sigmoid(x);
            return gradient * (s + x * s * (1.0f - s));
        case TANH:
            s = sigmoid(2.0f * x);
            return gradient * (4.0f * s * (1.0f - s));
    }
    return gradient;
}
