#include "finite.h"

#include "parallel_for.h"

enum {
    BLOCK = 1 << 16,        // values per task
    EXPONENT = 0x7f800000,  // all ones: infinity or NaN
};

typedef struct {
    const float* values;
    dim_t count;
    int* finite;  // set to 0 by every task that finds another value
} Task;

static void check_block(const void* context, dim_t index) {
    Task task = *(const Task*)context;
    const int* bits = (const int*)task.values + index * BLOCK;
    dim_t count = min(BLOCK, task.count - index * BLOCK);
    int found = 0;
    for (dim_t i = 0; i < count; i++) found |= (bits[i] & EXPONENT) == EXPONENT;
    if (found) __atomic_store_n(task.finite, 0, __ATOMIC_RELAXED);
}

int all_finite(XLA_FFI_CallFrame* frame, const float* values, dim_t count) {
    int finite = 1;
    Task task = {values, count, &finite};
    parallel_for(frame, ceil_div(count, BLOCK), 2 * count, check_block, &task);
    return finite;
}
