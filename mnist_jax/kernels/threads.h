// A loop whose turns are shared out to the threads of XLA. What a turn computes must not depend on who takes it.

#pragma once
#include "product.h"
#include "xla/ffi/api/c_api.h"

int sched_yield(void);

// On how many threads a call may be computed, the caller's own among them: native.py says it before any call.
static int most_threads = 1;

void mnist_jax_set_threads(int threads) { most_threads = threads; }

typedef struct {
    void (*turn)(const void* given, Size number);
    const void* given;
    Size count;
    Size next, done;  // turns that were taken, and that are finished
    int holders;      // threads that may still look at this
} Loop;

static void take_turns(Loop* loop) {
    Size number;
    while ((number = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->count) {
        loop->turn(loop->given, number);
        __atomic_fetch_add(&loop->done, 1, __ATOMIC_RELEASE);
    }
}

static void let_go(Loop* loop) {
    if (__atomic_sub_fetch(&loop->holders, 1, __ATOMIC_ACQ_REL) == 0) free(loop);
}

static void help(void* data) {
    take_turns(data);
    let_go(data);
}

// A loop of so few additions and multiplications is over before another thread has begun.
enum { WORTH_SHARING = 1000000 };

// turn(given, number) for each number from 0 to below `count`, of `work` operations in all. A thread that comes late, when
// all turns are taken, finds nothing to do, and nobody waits for it.
static void share_out(XLA_FFI_CallFrame* frame, Size count, Size work, void (*turn)(const void*, Size),
                      const void* given) {
    if (work < WORTH_SHARING || most_threads == 1) {
        for (Size number = 0; number < count; number++) turn(given, number);
        return;
    }
    Loop* loop = aligned_alloc(64, aligned(sizeof(Loop)));
    *loop = (Loop){.turn = turn, .given = given, .count = count, .holders = 1};
    for (Size helper = 1; helper < smaller(most_threads, count); helper++) {
        XLA_FFI_ThreadPool_Schedule_Args schedule = {.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE};
        schedule.ctx = frame->ctx, schedule.task = help, schedule.data = loop;
        __atomic_fetch_add(&loop->holders, 1, __ATOMIC_RELAXED);
        XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
        if (error != NULL) {  // There is no pool of threads: the caller takes all turns.
            XLA_FFI_Error_Destroy_Args destroy = {.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE};
            destroy.error = error;
            frame->api->XLA_FFI_Error_Destroy(&destroy);
            let_go(loop);
            break;
        }
    }
    take_turns(loop);
    while (__atomic_load_n(&loop->done, __ATOMIC_ACQUIRE) < count) sched_yield();
    let_go(loop);
}
