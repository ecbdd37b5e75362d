#include "parallel_for.h"

#include "memory.h"

int sched_yield(void);

// A loop with fewer multiply-adds finishes before another thread can start.
enum { MIN_PARALLEL_WORK = 1000000 };

static int max_threads = 1;  // Python sets it before the first call.

typedef struct {
    LoopBody* body;
    const void* context;
    dim_t count;
    dim_t next;      // first iteration that no thread has claimed
    dim_t finished;  // number of finished iterations
    int references;  // number of threads that may still access this struct
} Loop;

void set_max_threads(int threads) { max_threads = threads; }

int get_max_threads(void) { return max_threads; }

static void run_iterations(Loop* loop) {
    dim_t index;
    while ((index = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->count) {
        loop->body(loop->context, index);
        __atomic_fetch_add(&loop->finished, 1, __ATOMIC_RELEASE);
    }
}

static void release(Loop* loop) {
    if (__atomic_sub_fetch(&loop->references, 1, __ATOMIC_ACQ_REL) == 0) free(loop);
}

static void run_worker(void* loop) {
    run_iterations(loop);
    release(loop);
}

// Starts one worker. Returns 0 if XLA has no thread pool.
static int schedule_worker(XLA_FFI_CallFrame* frame, Loop* loop) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
        .ctx = frame->ctx,
        .task = run_worker,
        .data = loop,
    };
    __atomic_fetch_add(&loop->references, 1, __ATOMIC_RELAXED);
    XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (error == NULL) return 1;
    XLA_FFI_Error_Destroy_Args destroy = {
        .struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
        .error = error,
    };
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    release(loop);
    return 0;
}

// The loop is on the heap and reference-counted: a worker that starts late, when all iterations have been claimed,
// finds nothing to do, and the caller does not wait for it.
void parallel_for(XLA_FFI_CallFrame* frame, dim_t count, dim_t work, LoopBody* body, const void* context) {
    if (work < MIN_PARALLEL_WORK || max_threads == 1) {
        for (dim_t index = 0; index < count; index++) body(context, index);
        return;
    }
    Loop* loop = aligned_alloc(CACHE_LINE, ceil_div(sizeof(Loop), CACHE_LINE) * CACHE_LINE);
    *loop = (Loop){.body = body, .context = context, .count = count, .references = 1};
    for (dim_t worker = 1; worker < min(max_threads, count); worker++) {
        if (!schedule_worker(frame, loop)) break;  // The caller runs all iterations.
    }
    run_iterations(loop);
    while (__atomic_load_n(&loop->finished, __ATOMIC_ACQUIRE) < count) sched_yield();
    release(loop);
}
