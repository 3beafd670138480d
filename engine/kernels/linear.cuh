// Where the rows of a linear product lie.
#pragma once
#include "args.h"
#include "weights.cuh"

// The product that this z of the grid computes.
DEVICE Product product_of(const LinearKernel& a) { return a.products ? a.products[blockIdx.z] : a.single; }
DEVICE const float* input_row(const LinearKernel& a, u32 m) {
    return a.x + static_cast<u64>(a.x_rows ? a.x_rows[m] : m) * a.x_stride;
}
DEVICE float* output_row(const LinearKernel& a, u32 m) {
    return a.out + static_cast<u64>(a.out_rows ? a.out_rows[m] : m) * a.out_stride;
}
