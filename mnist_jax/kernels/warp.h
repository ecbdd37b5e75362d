// Moves the pixels of images, and changes their brightness and contrast, by different amounts for each image or pixel.

#pragma once
#include "simd.h"
#include "xla/ffi/api/c_api.h"

// The numbers of a motion, in this order; see plain_warp in warping.py.
enum { COSINE, SINE, ZOOM, SHEAR, DOWN, RIGHT, GAIN, OFFSET, STRETCH, MOTION };

typedef struct {
    dim_t examples, height, width, channels;
    const float *image, *motion;  // motion: MOTION numbers per example
    float* result;
} Warp;

// Computes the moved images by bilinear interpolation. Outside of an image, its pixels are 0.
void warp(XLA_FFI_CallFrame* frame, Warp w);

typedef struct {
    Warp images;  // without motion
    const float *noise, *taps;
    dim_t taps_count;
} Distortion;

// Computes the distorted images; see plain_distort in warping.py.
void distort(XLA_FFI_CallFrame* frame, Distortion d);
