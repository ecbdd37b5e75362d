// Scratch memory, and the few functions of the C library that the kernels use.

#pragma once
#include <stddef.h>

#include "simd.h"

// Declared here because a machine without a C compiler may not have the headers of its C library. The shared library is
// linked without libc and finds these symbols in the running process.
void* aligned_alloc(size_t alignment, size_t size);
void free(void* memory);
void* memcpy(void* restrict dst, const void* restrict src, size_t size);
void* memset(void* dst, int value, size_t size);

enum { CACHE_LINE = 64 };  // bytes

// Rounds a number of floats up to whole cache lines.
static inline dim_t align_up(dim_t floats) { return ceil_div(floats, 16) * 16; }

// SCRATCH_SHARED: allocated by the calling thread of a kernel and read or written by all threads of that call.
// SCRATCH_LOCAL: private to one thread.
typedef enum { SCRATCH_SHARED, SCRATCH_LOCAL } ScratchKind;

// Returns uninitialized memory for this many floats, aligned to a cache line. Each thread has one buffer of each kind,
// which every call with that kind reuses. Buffers are kept from call to call because the operating system clears newly
// allocated pages every time.
float* scratch(ScratchKind kind, dim_t floats);
