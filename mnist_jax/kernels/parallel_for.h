// Parallel loops on XLA's thread pool.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

// One iteration of a loop. Its result must not depend on the thread that runs it.
typedef void LoopBody(const void* context, dim_t index);

// Sets or returns the maximum number of threads per call, including the calling thread. The default is 1.
void set_max_threads(int threads);
int get_max_threads(void);

// Calls body(context, index) for every index in [0, count) and returns when all iterations have finished. `work` is the
// total number of multiply-adds; short loops run on the calling thread only.
void parallel_for(XLA_FFI_CallFrame* frame, dim_t count, dim_t work, LoopBody* body, const void* context);
