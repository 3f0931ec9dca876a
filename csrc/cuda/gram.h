// The two ways to a Gram matrix: of tensors of any dtype and alignment, and of those whose rows can be copied to shared
// memory as they are.
#pragma once

#include "grid.h"

namespace fastmerge::cuda {

// The upper triangle of a matrix as rows, one after the other: kernels.pairs.
__device__ inline int column_of(int row, int column, int count) {
  return row * count - row * (row - 1) / 2 + column - row;
}

// Tensors must have one dtype, and be aligned.
void gram_staged(double* partials, const Tensors& inputs, const Stream& stream, const std::string& what);

}  // namespace fastmerge::cuda
