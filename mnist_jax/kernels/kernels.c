// The functions that XLA calls on a CPU, through its foreign function interface; mnist_jax/native.py compiles this file
// and ops.py says what they compute.

#include "batch_norm.h"
#include "convolution.h"
#include "dense.h"
#include "pool.h"
#include "product.h"
#include "threads.h"
#include "xla/ffi/api/c_api.h"

static XLA_FFI_Buffer* argument(XLA_FFI_CallFrame* frame, int i) { return frame->args.args[i]; }

static XLA_FFI_Buffer* result(XLA_FFI_CallFrame* frame, int i) { return frame->rets.rets[i]; }

// The output of a ReLU where a call has it as its third argument.
static const float* active(XLA_FFI_CallFrame* frame) { return frame->args.size > 2 ? argument(frame, 2)->data : NULL; }

// XLA also asks for the version of the interface, when a function is registered.
static int answered_metadata(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Extension_Base* extension = frame->extension_start;
    if (extension == NULL || extension->type != XLA_FFI_Extension_Metadata) return 0;
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return 1;
}

static XLA_FFI_Error* layer(XLA_FFI_CallFrame* frame, int relu) {
    if (answered_metadata(frame)) return NULL;
    XLA_FFI_Buffer *x = argument(frame, 0), *kernel = argument(frame, 1), *bias = argument(frame, 2);
    XLA_FFI_Buffer* output = result(frame, 0);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = output->dims[1], .relu = relu};
        d.x = x->data, d.kernel = kernel->data, d.bias = bias->data, d.result = output->data;
        dense(frame, d);
    } else {
        Shape s = shape_of(x->dims, kernel->dims, output->dims, 0);
        convolve(frame, s, x->data, NULL, kernel->data, 0, bias->data, relu, output->data);
    }
    return NULL;
}

// (x, kernel, bias) -> output
XLA_FFI_Error* mnist_jax_layer(XLA_FFI_CallFrame* frame) { return layer(frame, 0); }

// (x, kernel, bias) -> the ReLU of the output
XLA_FFI_Error* mnist_jax_layer_relu(XLA_FFI_CallFrame* frame) { return layer(frame, 1); }

// (gradient of the output, kernel[, output of the ReLU]) -> gradient of x
XLA_FFI_Error* mnist_jax_input_gradient(XLA_FFI_CallFrame* frame) {
    if (answered_metadata(frame)) return NULL;
    XLA_FFI_Buffer *gradient = argument(frame, 0), *kernel = argument(frame, 1), *x = result(frame, 0);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = gradient->dims[1]};
        d.gradient = gradient->data, d.active = active(frame), d.kernel = kernel->data, d.result = x->data;
        dense_input_gradient(frame, d);
    } else {
        Shape s = shape_of(gradient->dims, kernel->dims, x->dims, 1);
        convolve(frame, s, gradient->data, active(frame), kernel->data, 1, NULL, 0, x->data);
    }
    return NULL;
}

// (x, gradient of the output[, output of the ReLU]) -> gradients of the kernel and of the bias
XLA_FFI_Error* mnist_jax_kernel_gradient(XLA_FFI_CallFrame* frame) {
    if (answered_metadata(frame)) return NULL;
    XLA_FFI_Buffer *x = argument(frame, 0), *gradient = argument(frame, 1);
    XLA_FFI_Buffer *kernel = result(frame, 0), *bias = result(frame, 1);
    if (x->rank == 2) {
        Dense d = {.examples = x->dims[0], .inputs = x->dims[1], .features = gradient->dims[1]};
        d.x = x->data, d.gradient = gradient->data, d.active = active(frame), d.result = kernel->data;
        dense_kernel_gradient(frame, d, bias->data);
    } else {
        Shape s = shape_of(x->dims, kernel->dims, gradient->dims, 0);
        convolution_gradient(frame, s, x->data, gradient->data, active(frame), kernel->data, bias->data);
    }
    return NULL;
}

static XLA_FFI_Error* pooled(XLA_FFI_CallFrame* frame, const float* gradient, void (*turn)(const void*, Size)) {
    XLA_FFI_Buffer* image = argument(frame, 0);
    Pool given = {image->dims[1], image->dims[2], image->dims[3], image->data, gradient, result(frame, 0)->data};
    Size work = image->dims[0] * given.height * given.width * given.channels;
    share_out(frame, image->dims[0], 4 * work, turn, &given);  // Four times: what it does waits for memory.
    return NULL;
}

// (image) -> pooled
XLA_FFI_Error* mnist_jax_pool(XLA_FFI_CallFrame* frame) {
    return answered_metadata(frame) ? NULL : pooled(frame, NULL, pool_example);
}

// (image, gradient of what is pooled) -> gradient of the image
XLA_FFI_Error* mnist_jax_pool_gradient(XLA_FFI_CallFrame* frame) {
    return answered_metadata(frame) ? NULL : pooled(frame, argument(frame, 1)->data, pool_example_gradient);
}

static Norm norm_of(XLA_FFI_Buffer* x) {
    float* sums = scratch(SHARED, 2 * x->dims[0] * x->dims[3]);
    return (Norm){x->dims[0], x->dims[1], x->dims[2], x->dims[3], .x = x->data, .sums = sums};
}

// (x, mask) -> sums of x and of its squares for each channel
XLA_FFI_Error* mnist_jax_moments(XLA_FFI_CallFrame* frame) {
    if (answered_metadata(frame)) return NULL;
    Norm norm = norm_of(argument(frame, 0));
    norm.mask = argument(frame, 1)->data;
    share_out_examples(frame, norm, moments_of_example);
    for (int i = 0; i < 2; i++) add_examples(norm, i, result(frame, i)->data);
    return NULL;
}

// (x, factor, shift) -> the ReLU of the scaled x
XLA_FFI_Error* mnist_jax_scale_relu(XLA_FFI_CallFrame* frame) {
    if (answered_metadata(frame)) return NULL;
    Norm norm = norm_of(argument(frame, 0));
    norm.factor = argument(frame, 1)->data, norm.shift = argument(frame, 2)->data;
    norm.result = result(frame, 0)->data;
    share_out_examples(frame, norm, scale_example);
    return NULL;
}

// (x, factor, shift, gradient of the output) -> gradients of x, factor and shift
XLA_FFI_Error* mnist_jax_scale_relu_gradient(XLA_FFI_CallFrame* frame) {
    if (answered_metadata(frame)) return NULL;
    Norm norm = norm_of(argument(frame, 0));
    norm.factor = argument(frame, 1)->data, norm.shift = argument(frame, 2)->data;
    norm.gradient = argument(frame, 3)->data, norm.result = result(frame, 0)->data;
    share_out_examples(frame, norm, scale_example_gradient);
    for (int i = 0; i < 2; i++) add_examples(norm, i, result(frame, i + 1)->data);
    return NULL;
}
