#include "rows.h"

#include "activation.h"
#include "parallel_for.h"

enum {
    PARTS = 16,  // partial sums of a row
    BLOCK = 64,  // rows per task
    COST = 20,   // of a value, in multiply-adds
};

static float add_parts(float parts[PARTS]) {
    for (int half = PARTS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// TERM is an expression of the column i. `restrict` pointers and a fixed number of parts let the compiler vectorize it.
#define ROW_SUM(columns, TERM)                                              \
    ({                                                                      \
        float parts[PARTS] = {0};                                           \
        dim_t first = 0;                                                    \
        for (; first + PARTS <= (columns); first += PARTS)                  \
            for (dim_t k = 0; k < PARTS; k++) {                             \
                dim_t i = first + k;                                        \
                parts[k] += TERM;                                           \
            }                                                               \
        for (dim_t i = first; i < (columns); i++) parts[i - first] += TERM; \
        add_parts(parts);                                                   \
    })

typedef void RowFunction(const Rows* r, dim_t row);

typedef struct {
    Rows rows;
    RowFunction* function;
} Task;

static void run_block(const void* context, dim_t block) {
    const Task* task = context;
    dim_t end = min((block + 1) * BLOCK, task->rows.rows);
    for (dim_t row = block * BLOCK; row < end; row++) task->function(&task->rows, row);
}

static void run(XLA_FFI_CallFrame* frame, Rows r, RowFunction* function) {
    Task task = {r, function};
    parallel_for(frame, ceil_div(r.rows, BLOCK), COST * r.rows * r.columns, run_block, &task);
}

typedef struct {
    float mean, deviation;
} Moments;

static Moments row_moments(const Rows* r, const float* restrict x) {
    float mean = ROW_SUM(r->columns, x[i]) / r->columns;
    float variance = ROW_SUM(r->columns, (x[i] - mean) * (x[i] - mean)) / r->columns;
    return (Moments){mean, __builtin_elementwise_sqrt(variance + r->epsilon)};
}

static void standardize_row(const Rows* r, dim_t row) {
    const float* restrict x = r->x + row * r->columns;
    float* restrict dst = r->result + row * r->columns;
    Moments m = row_moments(r, x);
    for (dim_t i = 0; i < r->columns; i++) dst[i] = (x[i] - m.mean) / m.deviation;
}

static void standardize_gradient_row(const Rows* r, dim_t row) {
    const float* restrict x = r->x + row * r->columns, * restrict gradient = r->gradient + row * r->columns;
    float* restrict dst = r->result + row * r->columns;
    Moments m = row_moments(r, x);
    float mean = ROW_SUM(r->columns, gradient[i]) / r->columns;
    float slope = ROW_SUM(r->columns, gradient[i] * ((x[i] - m.mean) / m.deviation)) / r->columns;
    for (dim_t i = 0; i < r->columns; i++)
        dst[i] = (gradient[i] - mean - (x[i] - m.mean) / m.deviation * slope) / m.deviation;
}

static void softmax_row(const Rows* r, dim_t row) {
    const float* restrict x = r->x + row * r->columns;
    float* restrict dst = r->result + row * r->columns;
    float parts[PARTS];
    for (dim_t k = 0; k < PARTS; k++) parts[k] = x[0];
    dim_t first = 0;
    for (; first + PARTS <= r->columns; first += PARTS)
        for (dim_t k = 0; k < PARTS; k++) parts[k] = max_or_nan(x[first + k], parts[k]);
    for (dim_t i = first; i < r->columns; i++) parts[0] = max_or_nan(x[i], parts[0]);
    float largest = parts[0];
    for (dim_t k = 1; k < PARTS; k++) largest = max_or_nan(parts[k], largest);
    for (dim_t i = 0; i < r->columns; i++) dst[i] = exponential(x[i] - largest);
    float sum = ROW_SUM(r->columns, dst[i]);
    for (dim_t i = 0; i < r->columns; i++) dst[i] = dst[i] / sum;
}

static void softmax_gradient_row(const Rows* r, dim_t row) {
    const float* restrict y = r->x + row * r->columns, * restrict gradient = r->gradient + row * r->columns;
    float* restrict dst = r->result + row * r->columns;
    float mean = ROW_SUM(r->columns, gradient[i] * y[i]);
    for (dim_t i = 0; i < r->columns; i++) dst[i] = (gradient[i] - mean) * y[i];
}

void standardize(XLA_FFI_CallFrame* frame, Rows r) { run(frame, r, standardize_row); }

void standardize_gradient(XLA_FFI_CallFrame* frame, Rows r) { run(frame, r, standardize_gradient_row); }

void softmax(XLA_FFI_CallFrame* frame, Rows r) { run(frame, r, softmax_row); }

void softmax_gradient(XLA_FFI_CallFrame* frame, Rows r) { run(frame, r, softmax_gradient_row); }
