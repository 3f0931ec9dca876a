// The low-rank update: the fold of a LoRA adapter into its matrix. Tensor cores cannot serve: they round otherwise.
#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 128;
// Rows that share what is read of `down`: the sums of eight columns of each stay in registers.
constexpr int kRows = 8;
// Columns of `up` that lie in shared memory at a time, where threads read those of all rows together.
constexpr int kRanks = 32;

struct Input {
  Source out, weight, down;
  const float* up;
  std::int64_t rows, columns, row_tiles;
  int rank;
  float scale;
};

// kWhole: all vectors of `down` are aligned and whole.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, kWhole ? 4 : 3) low_rank_kernel(const __grid_constant__ Input p) {
  __shared__ float4 up[kRanks][kRows / 4];
  // Tiles below each other run side by side: they share the same columns of `down`.
  const std::int64_t top = std::int64_t{blockIdx.x} % p.row_tiles * kRows;
  const std::int64_t column = (blockIdx.x / p.row_tiles * kThreads + threadIdx.x) * kVector;
  const bool inside = column < p.columns;
  const Range range = range_at(column, p.columns);
  float acc[kRows][kVector], down[kVector] = {};
  // Threads beyond the matrix, and all after the last rank, read what is there and do not use it.
  const std::int64_t begin = kWhole && !inside ? 0 : column;
  const auto read = [&](int r) {
    const std::int64_t at = (r < p.rank ? r : p.rank - 1) * p.columns + begin;
    if constexpr (kWhole) {
      widen(load(static_cast<const float*>(p.down.data) + at), down);
    } else if (inside) {
      widen(load_any(p.down, at, range), down);
    }
  };
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    // Adding to -0 changes no product, not even the sign of a zero.
    for (int j = 0; j < kVector; ++j) acc[i][j] = -0.0f;
  }
  read(0);
  for (int first = 0; first < p.rank; first += kRanks) {
    const int ranks = p.rank - first < kRanks ? p.rank - first : kRanks;
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kRanks; i += kThreads) {
      const std::int64_t row = top + i / kRanks;
      const int r = i % kRanks;
      const bool there = row < p.rows && r < ranks;
      reinterpret_cast<float*>(up[r])[i / kRanks] = there ? p.up[row * p.rank + first + r] : 0.0f;
    }
    __syncthreads();
#pragma unroll 2
    for (int r = 0; r < ranks; ++r) {
      float now[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) now[j] = down[j];
      // On its way while this one is added.
      read(first + r + 1);
#pragma unroll
      for (int part = 0; part < kRows / 4; ++part) {
        const float4 factors = up[r][part];
        const float each[4] = {factors.x, factors.y, factors.z, factors.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            float& sum = acc[4 * part + i][j];
            sum = multiply_add<float>(sum, each[i], now[j]);
          }
        }
      }
    }
  }
  if (!inside) return;
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
  const bool whole = p.down.aligned && columns % kVector == 0;
  launch(what, stream, whole ? low_rank_kernel<true> : low_rank_kernel<false>, {blocks, kThreads}, p);
}

}  // namespace fastmerge::cuda
