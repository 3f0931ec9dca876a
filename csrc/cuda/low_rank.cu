// The low-rank update: the fold of a LoRA adapter into its matrix. Tensor cores cannot serve: they round otherwise.
#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 128;
// Rows that share what is read of `down`: eight columns of each stay in registers.
constexpr int kRows = 4;

struct Input {
  Source out, weight, down;
  const float* up;
  std::int64_t rows, columns, row_tiles;
  int rank;
  float scale;
};

__global__ void __launch_bounds__(kThreads) low_rank_kernel(const __grid_constant__ Input p) {
  // Tiles below each other run side by side: they share the same columns of `down`.
  const std::int64_t top = std::int64_t{blockIdx.x} % p.row_tiles * kRows;
  const std::int64_t column = (blockIdx.x / p.row_tiles * kThreads + threadIdx.x) * kVector;
  if (column >= p.columns) return;
  const Range range = range_at(column, p.columns);
  const auto row = [&](int i) { return top + i < p.rows ? top + i : p.rows - 1; };
  float acc[kRows][kVector];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    // Adding to -0 changes no product, not even the sign of a zero.
    for (int j = 0; j < kVector; ++j) acc[i][j] = -0.0f;
  }
  for (int r = 0; r < p.rank; ++r) {
    float down[kVector];
    widen(load_any(p.down, r * p.columns + column, range), down);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float up = __ldg(p.up + row(i) * p.rank + r);
#pragma unroll
      for (int j = 0; j < kVector; ++j) acc[i][j] = multiply_add<float>(acc[i][j], up, down[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (top + i >= p.rows) break;
    const std::int64_t element = (top + i) * p.columns + column;
    float weight[kVector];
    widen(load_any(p.weight, element, range), weight);
#pragma unroll
    for (int j = 0; j < kVector; ++j) weight[j] = multiply_add<float>(weight[j], acc[i][j], p.scale);
    store_any(p.out, element, range, weight);
  }
}

}  // namespace

void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale, const Stream& stream) {
  if (rows == 0 || columns == 0) return;
  // A row begins where the one before it ends, so rows of odd length are not aligned.
  const auto rowwise = [&](Array array) {
    Source rows_of = source(array, 0);
    rows_of.aligned = rows_of.aligned && columns % kVector == 0;
    return rows_of;
  };
  Input p{};
  p.out = rowwise({out.data, out.dtype});
  p.weight = rowwise(weight);
  p.down = rowwise({down, kFloat32});
  p.up = up;
  p.rows = static_cast<std::int64_t>(rows);
  p.columns = static_cast<std::int64_t>(columns);
  p.row_tiles = (p.rows + kRows - 1) / kRows;
  p.rank = static_cast<int>(rank);
  p.scale = scale;
  const std::string what =
      "low_rank of " + std::to_string(rows) + " x " + std::to_string(columns) + ", rank " + std::to_string(rank);
  const auto blocks = static_cast<unsigned>(p.row_tiles * tiles_of(p.columns, 0, kThreads));
  launch(what, stream, low_rank_kernel, {blocks, kThreads}, p);
}

}  // namespace fastmerge::cuda
