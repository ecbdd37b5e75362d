// The functions that XLA calls on a CPU through its foreign function interface. build.py registers them under these
// names; ops.py calls them and defines what they compute. The comment above each one gives its arguments and results.

#include "batch_norm.h"
#include "convolution.h"
#include "dense.h"
#include "depthwise.h"
#include "finite.h"
#include "max_pool.h"
#include "memory.h"
#include "parallel_for.h"
#include "products.h"
#include "rows.h"
#include "warp.h"
#include "xla/ffi/api/c_api.h"

// All other functions are hidden (-fvisibility=hidden).
#define EXPORT __attribute__((visibility("default")))

static XLA_FFI_Buffer* argument(XLA_FFI_CallFrame* frame, int i) { return frame->args.args[i]; }

static XLA_FFI_Buffer* result(XLA_FFI_CallFrame* frame, int i) { return frame->rets.rets[i]; }

// The output of the layer's ReLU, which is the third argument of a gradient; NULL for a layer without a ReLU.
static const float* relu_output(XLA_FFI_CallFrame* frame) {
    return frame->args.size > 2 ? argument(frame, 2)->data : NULL;
}

// Answers the call in which XLA asks for the version of the interface when a function is registered. Returns 0 if this
// is a normal call.
static int answer_metadata_query(XLA_FFI_CallFrame* frame) {
    __auto_type extension = frame->extension_start;  // The name of its type differs between versions of JAX.
    if (extension == NULL || extension->type != XLA_FFI_Extension_Metadata) return 0;
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return 1;
}

// Sets the maximum number of threads per call, including the calling thread.
EXPORT void mnist_jax_set_threads(int threads) { set_max_threads(threads); }

static XLA_FFI_Error* layer(XLA_FFI_CallFrame* frame, int relu) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *x = argument(frame, 0), *kernel = argument(frame, 1), *bias = argument(frame, 2);
    XLA_FFI_Buffer* output = result(frame, 0);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = output->dims[1], .relu = relu};
        d.x = x->data, d.kernel = kernel->data, d.bias = bias->data, d.result = output->data;
        dense_forward(frame, d);
    } else {
        ConvShape shape = conv_shape(x->dims, kernel->dims, output->dims, 0);
        convolve(frame, shape, x->data, NULL, kernel->data, 0, bias->data, relu, output->data);
    }
    return NULL;
}

// (x, kernel, bias) -> output. A dense layer if x is a matrix, else a convolution.
EXPORT XLA_FFI_Error* mnist_jax_layer(XLA_FFI_CallFrame* frame) { return layer(frame, 0); }

// (x, kernel, bias) -> ReLU of the output
EXPORT XLA_FFI_Error* mnist_jax_layer_relu(XLA_FFI_CallFrame* frame) { return layer(frame, 1); }

// (gradient of the output, kernel[, output of the ReLU]) -> gradient of x
EXPORT XLA_FFI_Error* mnist_jax_input_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *gradient = argument(frame, 0), *kernel = argument(frame, 1), *x = result(frame, 0);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = gradient->dims[1]};
        d.gradient = gradient->data, d.relu_output = relu_output(frame), d.kernel = kernel->data, d.result = x->data;
        dense_input_gradient(frame, d);
    } else {
        ConvShape shape = conv_shape(gradient->dims, kernel->dims, x->dims, 1);
        convolve(frame, shape, gradient->data, relu_output(frame), kernel->data, 1, NULL, 0, x->data);
    }
    return NULL;
}

// (x, gradient of the output[, output of the ReLU]) -> gradients of the kernel and of the bias
EXPORT XLA_FFI_Error* mnist_jax_kernel_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *x = argument(frame, 0), *gradient = argument(frame, 1);
    XLA_FFI_Buffer *kernel = result(frame, 0), *bias = result(frame, 1);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = gradient->dims[1]};
        d.x = x->data, d.gradient = gradient->data, d.relu_output = relu_output(frame), d.result = kernel->data;
        dense_kernel_gradient(frame, d, bias->data);
    } else {
        ConvShape shape = conv_shape(x->dims, kernel->dims, gradient->dims, 0);
        convolution_gradient(frame, shape, x->data, gradient->data, relu_output(frame), kernel->data, bias->data);
    }
    return NULL;
}

static MaxPool max_pool_of(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Buffer* image = argument(frame, 0);
    return (MaxPool){image->dims[0], image->dims[1],       image->dims[2],
                     image->dims[3], .image = image->data, .result = result(frame, 0)->data};
}

// (image) -> pooled image
EXPORT XLA_FFI_Error* mnist_jax_pool(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    max_pool_forward(frame, max_pool_of(frame));
    return NULL;
}

// (image, gradient of the pooled image) -> gradient of the image
EXPORT XLA_FFI_Error* mnist_jax_pool_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    MaxPool pool = max_pool_of(frame);
    pool.gradient = argument(frame, 1)->data;
    max_pool_gradient(frame, pool);
    return NULL;
}

static BatchNorm batch_norm_of(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Buffer* x = argument(frame, 0);
    return (BatchNorm){x->dims[0], x->dims[1], x->dims[2], x->dims[3], .x = x->data};
}

// (x, mask) -> sums of x and of its squares per channel
EXPORT XLA_FFI_Error* mnist_jax_moments(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    BatchNorm norm = batch_norm_of(frame);
    norm.mask = argument(frame, 1)->data;
    moments(frame, norm, result(frame, 0)->data, result(frame, 1)->data);
    return NULL;
}

// (x, mask, gradients of the two sums) -> gradient of x
EXPORT XLA_FFI_Error* mnist_jax_moments_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    BatchNorm norm = batch_norm_of(frame);
    norm.mask = argument(frame, 1)->data, norm.result = result(frame, 0)->data;
    moments_gradient(frame, norm, argument(frame, 2)->data, argument(frame, 3)->data);
    return NULL;
}

static float scalar(XLA_FFI_CallFrame* frame, int i) { return *(const float*)argument(frame, i)->data; }

// The first arguments of the two functions below: sums of x and of its squares, number of pixels, scale, bias, moving
// averages of mean and variance, momentum, epsilon.
static Normalization normalization_of(XLA_FFI_CallFrame* frame) {
    return (Normalization){
        .channels = argument(frame, 0)->dims[0],
        .sum = argument(frame, 0)->data,
        .sum_of_squares = argument(frame, 1)->data,
        .count = scalar(frame, 2),
        .scale = argument(frame, 3)->data,
        .bias = argument(frame, 4)->data,
        .moving_mean = argument(frame, 5)->data,
        .moving_variance = argument(frame, 6)->data,
        .momentum = scalar(frame, 7),
        .epsilon = scalar(frame, 8),
    };
}

// (...) -> factor, shift, new moving averages
EXPORT XLA_FFI_Error* mnist_jax_normalize(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    normalize(normalization_of(frame), result(frame, 0)->data, result(frame, 1)->data, result(frame, 2)->data,
              result(frame, 3)->data);
    return NULL;
}

// (..., gradients of factor, shift and the new moving averages) -> gradients of the two sums, scale and bias
EXPORT XLA_FFI_Error* mnist_jax_normalize_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    normalize_gradient(normalization_of(frame), argument(frame, 9)->data, argument(frame, 10)->data,
                       argument(frame, 11)->data, argument(frame, 12)->data, result(frame, 0)->data,
                       result(frame, 1)->data, result(frame, 2)->data, result(frame, 3)->data);
    return NULL;
}

// (scale, bias, moving averages of mean and variance, epsilon) -> factor, shift
EXPORT XLA_FFI_Error* mnist_jax_normalize_for_inference(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Normalization n = {
        .channels = argument(frame, 0)->dims[0],
        .scale = argument(frame, 0)->data,
        .bias = argument(frame, 1)->data,
        .moving_mean = argument(frame, 2)->data,
        .moving_variance = argument(frame, 3)->data,
        .epsilon = scalar(frame, 4),
    };
    normalize_for_inference(n, result(frame, 0)->data, result(frame, 1)->data);
    return NULL;
}

static XLA_FFI_Error* scale_to_activation(XLA_FFI_CallFrame* frame, Activation kind) {
    if (answer_metadata_query(frame)) return NULL;
    BatchNorm norm = batch_norm_of(frame);
    norm.factor = argument(frame, 1)->data, norm.shift = argument(frame, 2)->data;
    norm.result = result(frame, 0)->data;
    scale(frame, norm, kind);
    return NULL;
}

static XLA_FFI_Error* scale_to_activation_gradient(XLA_FFI_CallFrame* frame, Activation kind) {
    if (answer_metadata_query(frame)) return NULL;
    BatchNorm norm = batch_norm_of(frame);
    norm.factor = argument(frame, 1)->data, norm.shift = argument(frame, 2)->data;
    norm.gradient = argument(frame, 3)->data, norm.result = result(frame, 0)->data;
    scale_gradient(frame, norm, kind, result(frame, 1)->data, result(frame, 2)->data);
    return NULL;
}

// mnist_jax_scale_NAME: (x, factor, shift) -> activation of x * factor + shift
// mnist_jax_scale_NAME_gradient: (x, factor, shift, gradient of the output) -> gradients of x, factor and shift
#define EXPORT_SCALE(KIND, NAME)                                                        \
    EXPORT XLA_FFI_Error* mnist_jax_scale_##NAME(XLA_FFI_CallFrame* frame) {            \
        return scale_to_activation(frame, KIND);                                        \
    }                                                                                   \
    EXPORT XLA_FFI_Error* mnist_jax_scale_##NAME##_gradient(XLA_FFI_CallFrame* frame) { \
        return scale_to_activation_gradient(frame, KIND);                               \
    }
EXPORT_SCALE(IDENTITY, identity)
EXPORT_SCALE(RELU, relu)
EXPORT_SCALE(LEAKY_RELU, leaky_relu)
EXPORT_SCALE(GELU, gelu)
EXPORT_SCALE(SILU, silu)
EXPORT_SCALE(TANH, tanh)

static Rows rows_of(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Buffer* x = argument(frame, 0);
    return (Rows){.rows = x->dims[0], .columns = x->dims[1], .x = x->data, .result = result(frame, 0)->data};
}

// (x, epsilon) -> x, standardized row by row
EXPORT XLA_FFI_Error* mnist_jax_standardize(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Rows rows = rows_of(frame);
    rows.epsilon = scalar(frame, 1);
    standardize(frame, rows);
    return NULL;
}

// (x, epsilon, gradient of the output) -> gradient of x
EXPORT XLA_FFI_Error* mnist_jax_standardize_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Rows rows = rows_of(frame);
    rows.epsilon = scalar(frame, 1), rows.gradient = argument(frame, 2)->data;
    standardize_gradient(frame, rows);
    return NULL;
}

// (x) -> softmax of each row
EXPORT XLA_FFI_Error* mnist_jax_softmax(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    softmax(frame, rows_of(frame));
    return NULL;
}

// (output, gradient of the output) -> gradient of x
EXPORT XLA_FFI_Error* mnist_jax_softmax_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Rows rows = rows_of(frame);
    rows.gradient = argument(frame, 1)->data;
    softmax_gradient(frame, rows);
    return NULL;
}

// (a, b) -> products of the matrices of both
EXPORT XLA_FFI_Error* mnist_jax_matrix_products(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *a = argument(frame, 0), *b = argument(frame, 1);
    Products p = {a->dims[0], a->dims[1], a->dims[2], b->dims[2], a->data, b->data, result(frame, 0)->data};
    multiply_matrices(frame, p);
    return NULL;
}

// Returns the padding before the image if `output` positions, `stride` apart, are to cover `size` pixels. It is 0 if
// the padding is 'VALID', because then nothing is missing.
static dim_t padding_before(dim_t size, dim_t kernel, dim_t stride, dim_t output) {
    dim_t missing = (output - 1) * stride + kernel - size;
    return missing > 0 ? missing / 2 : 0;
}

// `image`, `kernel` and `output` are the buffers with their shapes.
static Depthwise depthwise_of(XLA_FFI_CallFrame* frame, XLA_FFI_Buffer* image, XLA_FFI_Buffer* kernel,
                              XLA_FFI_Buffer* output, dim_t stride) {
    Depthwise d = {.examples = image->dims[0], .height = image->dims[1], .width = image->dims[2]};
    d.channels = image->dims[3], d.kernel_height = kernel->dims[0], d.kernel_width = kernel->dims[1];
    d.output_height = output->dims[1], d.output_width = output->dims[2], d.stride = stride;
    d.top = padding_before(d.height, d.kernel_height, stride, d.output_height);
    d.left = padding_before(d.width, d.kernel_width, stride, d.output_width);
    d.result = result(frame, 0)->data;
    return d;
}

// (image, kernel, bias, stride) -> output
static XLA_FFI_Error* depthwise_layer(XLA_FFI_CallFrame* frame, int relu) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *image = argument(frame, 0), *kernel = argument(frame, 1);
    Depthwise d = depthwise_of(frame, image, kernel, result(frame, 0), scalar(frame, 3));
    d.image = image->data, d.kernel = kernel->data, d.bias = argument(frame, 2)->data;
    d.relu = relu;
    depthwise(frame, d);
    return NULL;
}

EXPORT XLA_FFI_Error* mnist_jax_depthwise(XLA_FFI_CallFrame* frame) { return depthwise_layer(frame, 0); }

EXPORT XLA_FFI_Error* mnist_jax_depthwise_relu(XLA_FFI_CallFrame* frame) { return depthwise_layer(frame, 1); }

// (gradient of the output, kernel, stride) -> gradient of the image
EXPORT XLA_FFI_Error* mnist_jax_depthwise_image_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *gradient = argument(frame, 0), *kernel = argument(frame, 1);
    Depthwise d = depthwise_of(frame, result(frame, 0), kernel, gradient, scalar(frame, 2));
    d.gradient = gradient->data, d.kernel = kernel->data;
    depthwise_image_gradient(frame, d);
    return NULL;
}

// (image, gradient of the output, stride) -> gradients of the kernel and of the bias
EXPORT XLA_FFI_Error* mnist_jax_depthwise_kernel_gradient(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *image = argument(frame, 0), *gradient = argument(frame, 1);
    Depthwise d = depthwise_of(frame, image, result(frame, 0), gradient, scalar(frame, 2));
    d.image = image->data, d.gradient = gradient->data;
    depthwise_kernel_gradient(frame, d, result(frame, 1)->data);
    return NULL;
}

static Warp warp_of(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Buffer* image = argument(frame, 0);
    return (Warp){image->dims[0], image->dims[1],       image->dims[2],
                  image->dims[3], .image = image->data, .result = result(frame, 0)->data};
}

// (images, motions) -> moved images
EXPORT XLA_FFI_Error* mnist_jax_warp(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Warp w = warp_of(frame);
    w.motion = argument(frame, 1)->data;
    warp(frame, w);
    return NULL;
}

// (images, noise, taps) -> distorted images
EXPORT XLA_FFI_Error* mnist_jax_distort(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    Distortion d = {.images = warp_of(frame), .noise = argument(frame, 1)->data, .taps = argument(frame, 2)->data};
    d.taps_count = argument(frame, 2)->dims[0];
    distort(frame, d);
    return NULL;
}

// (any number of arrays) -> 1 if all of their values are finite, else 0
EXPORT XLA_FFI_Error* mnist_jax_all_finite(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    int finite = 1;
    for (dim_t i = 0; i < frame->args.size; i++) {
        XLA_FFI_Buffer* array = argument(frame, i);
        dim_t count = 1;
        for (dim_t axis = 0; axis < array->rank; axis++) count *= array->dims[axis];
        finite &= all_finite(frame, array->data, count);
    }
    *(float*)result(frame, 0)->data = finite;
    return NULL;
}

// (vector) -> the same vector, usually in the same memory; XLA joins nothing across a call
EXPORT XLA_FFI_Error* mnist_jax_separate(XLA_FFI_CallFrame* frame) {
    if (answer_metadata_query(frame)) return NULL;
    XLA_FFI_Buffer *source = argument(frame, 0), *target = result(frame, 0);
    if (source->data != target->data) memcpy(target->data, source->data, source->dims[0] * sizeof(float));
    return NULL;
}
