#include "memory.h"

float* scratch(ScratchKind kind, dim_t floats) {
    static _Thread_local void* buffer[2];
    static _Thread_local dim_t capacity[2];  // bytes
    dim_t bytes = ceil_div(floats, 16) * CACHE_LINE;
    if (bytes > capacity[kind]) {
        free(buffer[kind]);
        buffer[kind] = aligned_alloc(CACHE_LINE, bytes);
        capacity[kind] = bytes;
    }
    return buffer[kind];
}
