// Gram matrices of deltas, in float64 over the reduction grid. Here of tensors of any dtype and alignment: a warp owns
// a chunk and a tile of the matrix, all of it for up to four tensors, else three rows by three columns.
#include "gram.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarps = 2;
// Sums of 10 pairs or of 9 take 16 registers each.
constexpr int kWhole = 4, kTile = 3;

struct Input {
  Source tensors[kMaxTensors];
  Source base;
  double* partials;
  std::int64_t size;
  std::int64_t units;  // chunks times tiles
  int count, tiles;
};

// Corner of tile `index`, counted over the upper triangle of `side` x `side` tiles.
__device__ inline void corner_of(int index, int side, int& top, int& left) {
  top = 0;
  while (index >= side - top) index -= side - top++;
  left = top + index;
}

// With kTriangle the tile is the whole matrix, of kSide tensors: its pairs i <= j.
template <int kSide, bool kTriangle>
__global__ void __launch_bounds__(kWarps* kWarp) gram_kernel(const __grid_constant__ Input p) {
  constexpr int kPairs = kTriangle ? kSide * (kSide + 1) / 2 : kSide * kSide;
  constexpr int kLoads = kTriangle ? kSide : 2 * kSide;
  const std::int64_t unit = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (unit >= p.units) return;
  // Tiles of one chunk run side by side, so that its tensors come from memory once and then from the cache.
  const std::int64_t chunk = unit / p.tiles;
  int top = 0, left = 0;
  if constexpr (!kTriangle) {
    corner_of(static_cast<int>(unit % p.tiles), (p.count + kSide - 1) / kSide, top, left);
    top *= kSide;
    left *= kSide;
  }
  // Rows of the tile, then its columns. Those beyond the matrix repeat the last tensor and are not stored.
  const auto tensor = [&](int i) -> const Source& {
    const int k = i < kSide ? top + i : left + i - kSide;
    return p.tensors[k < p.count ? k : p.count - 1];
  };
  double sums[kPairs][kVector] = {};
  const bool based = p.base.data != nullptr;
  const Rows rows(chunk, p.size);
#pragma unroll 1
  for (int row = 0; row < rows.count; ++row) {
    const std::int64_t element = rows.element + row * kLanes;
    const Range range = range_at(element, p.size);
    AnyRaw raw_base{}, raw[kLoads];
    if (based) raw_base = load_any(p.base, element, range);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raw[i] = load_any(tensor(i), element, range);
    float base[kVector] = {}, deltas[kLoads][kVector];
    if (based) widen(raw_base, base);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      widen(raw[i], deltas[i]);
#pragma unroll
      // Subtracting +0, where there is no base, changes nothing.
      for (int j = 0; j < kVector; ++j) deltas[i][j] = deltas[i][j] - base[j];
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      int pair = 0;
#pragma unroll
      for (int a = 0; a < kSide; ++a) {
#pragma unroll
        for (int b = kTriangle ? a : 0; b < kSide; ++b) {
          // The product is exact, so this rounds once, like the sum of the reference.
          sums[pair][j] = __fma_rn(static_cast<double>(deltas[a][j]),
                                   static_cast<double>(deltas[kTriangle ? b : kSide + b][j]), sums[pair][j]);
          ++pair;
        }
      }
    }
  }
  double* const out = p.partials + chunk * (p.count * (p.count + 1) / 2);
  int pair = 0;
#pragma unroll
  for (int a = 0; a < kSide; ++a) {
#pragma unroll
    for (int b = kTriangle ? a : 0; b < kSide; ++b) {
      const double sum = tree_sum(sums[pair++]);
      const int row = top + a, column = left + b;
      if (threadIdx.x % kWarp == 0 && row <= column && column < p.count) out[column_of(row, column, p.count)] = sum;
    }
  }
}

}  // namespace

void gram(double* partials, const Tensors& inputs, const Stream& stream) {
  if (inputs.size == 0) return;
  const int count = inputs.count(), side = (count + kTile - 1) / kTile;
  const std::string what =
      "gram of " + std::to_string(count) + " tensors, " + std::to_string(inputs.size) + " elements";
  if (uniform(inputs, {nullptr, inputs.tensors[0].dtype}, 0)) return gram_staged(partials, inputs, stream, what);
  Input p{};
  for (int k = 0; k < count; ++k) p.tensors[k] = source(inputs.tensors[k], 0);
  p.base = source(inputs.base, 0);
  p.partials = partials;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.count = count;
  p.tiles = count <= kWhole ? 1 : side * (side + 1) / 2;
  p.units = static_cast<std::int64_t>(chunks_of(inputs.size)) * p.tiles;
  const Grid grid{static_cast<unsigned>((p.units + kWarps - 1) / kWarps), kWarps * kWarp};
  if (count > kWhole) return launch(what, stream, gram_kernel<kTile, false>, grid, p);
  with_constant<kWhole>(
      count - 1, [&](auto less) { launch(what, stream, gram_kernel<decltype(less)::value + 1, true>, grid, p); });
}

}  // namespace fastmerge::cuda
