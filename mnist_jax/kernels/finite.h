// The check for NaN and infinity.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

// Returns whether all values are finite.
int all_finite(XLA_FFI_CallFrame* frame, const float* values, dim_t count);
