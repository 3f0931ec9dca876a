// Gram matrices of deltas, in float64 over the reduction grid. A warp owns a chunk and a tile of the matrix: all of it
// for up to four tensors, else three rows by three columns. Of five to eight 16-bit tensors a block owns a whole chunk
// and all pairs, so that every element is loaded and converted once.
#include <cuda_pipeline.h>

#include "grid.h"

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
  std::int64_t first;  // chunk
  std::int64_t units;  // chunks times tiles
  int count, tiles;
};

// The upper triangle of a matrix as rows, one after the other: kernels.pairs.
__device__ inline int column_of(int row, int column, int count) {
  return row * count - row * (row - 1) / 2 + column - row;
}

// Corner of tile `index`, counted over the upper triangle of `side` x `side` tiles.
__device__ inline void corner_of(int index, int side, int& top, int& left) {
  top = 0;
  while (index >= side - top) index -= side - top++;
  left = top + index;
}

// T: of all tensors; void for any. With kTriangle the tile is the whole matrix, of kSide tensors: its pairs i <= j.
template <class T, int kSide, bool kTriangle>
__global__ void __launch_bounds__(kWarps* kWarp) gram_kernel(const __grid_constant__ Input p) {
  constexpr int kPairs = kTriangle ? kSide * (kSide + 1) / 2 : kSide * kSide;
  constexpr int kLoads = kTriangle ? kSide : 2 * kSide;
  // Whether registers hold the vectors of another row.
  constexpr bool kAhead = kLoads * sizeof(typename Loaded<T>::Type) <= 96;
  const std::int64_t unit = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (unit >= p.units) return;
  // Tiles of one chunk run side by side, so that its tensors come from memory once and then from the cache.
  const std::int64_t chunk = p.first + unit / p.tiles;
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
  std::int64_t element = rows.element;
  typename Loaded<T>::Type raw_base{}, raw[kLoads] = {};
  const auto load_row = [&] {
    if (based) raw_base = load_vector<T>(p.base, element, p.size);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raw[i] = load_vector<T>(tensor(i), element, p.size);
  };
  if (kAhead && rows.count) load_row();
#pragma unroll 1
  for (int left = rows.count; left > 0; --left) {
    if (!kAhead) load_row();
    float base[kVector] = {}, deltas[kLoads][kVector];
    if (based) widen(raw_base, base);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      widen(raw[i], deltas[i]);
#pragma unroll
      // Subtracting +0, where there is no base, changes nothing.
      for (int j = 0; j < kVector; ++j) deltas[i][j] = deltas[i][j] - base[j];
    }
    // The next row is on its way while this one is multiplied.
    element += kLanes;
    if (kAhead && left > 1) load_row();
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

// Of kMany tensors at most, whose 36 pairs of two lanes take 144 registers.
constexpr int kMany = 8;
constexpr int kThreads = kLanes / 2;   // of a block
constexpr int kStages = 8;             // rows of all tensors in shared memory, of which all but one are on their way
constexpr int kRowWords = kLanes / 2;  // of a row of one tensor
constexpr int kRows = kGrid / kLanes;

template <class T, int kCount>
struct Whole {
  const T* tensors[kCount + 1];  // the last one is the base
  double* partials;
};

// All elements of a chunk exist, and all rows are aligned. Thread t has lanes 2t and 2t + 1.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) gram_rows_kernel(const __grid_constant__ Whole<T, kCount> p) {
  constexpr int kPairs = kCount * (kCount + 1) / 2;
  unsigned* const ring = dynamic_shared<unsigned>();  // [stage][tensor, base][word]
  const unsigned thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t first = std::int64_t{blockIdx.x} * kGrid + lane * kVector;
  // A warp copies rows of every fourth tensor, a vector each thread.
  const auto fetch = [&](int row) {
    if (row < kRows) {
      unsigned* const stage = ring + row % kStages * (kCount + 1) * kRowWords;
#pragma unroll
      for (unsigned k = warp; k <= kCount; k += kThreads / kWarp) {
        if (!p.tensors[k]) continue;
        __pipeline_memcpy_async(stage + k * kRowWords + lane * (kRowWords / kWarp), p.tensors[k] + first + row * kLanes,
                                16);
      }
    }
    // Also where nothing was copied: stages are counted.
    __pipeline_commit();
  };
#pragma unroll
  for (int row = 0; row < kStages - 1; ++row) fetch(row);
  const bool based = p.tensors[kCount] != nullptr;
  double sums[kPairs][2] = {};
#pragma unroll 1
  for (int row = 0; row < kRows; ++row) {
    __pipeline_wait_prior(kStages - 2);
    // Every thread's part of this row has come, and none reads the row before, whose place the next one takes.
    __syncthreads();
    const unsigned* const stage = ring + row % kStages * (kCount + 1) * kRowWords + thread;
    const unsigned base = based ? stage[kCount * kRowWords] : 0u;
    const float low = widen_half<T>(base & 0xFFFFu), high = widen_half<T>(base >> 16);
    double deltas[kCount][2];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const unsigned word = stage[k * kRowWords];
      // Subtracting +0, where there is no base, changes nothing.
      deltas[k][0] = widen_half<T>(word & 0xFFFFu) - low;
      deltas[k][1] = widen_half<T>(word >> 16) - high;
    }
    fetch(row + kStages - 1);
    int pair = 0;
#pragma unroll
    for (int a = 0; a < kCount; ++a) {
#pragma unroll
      for (int b = a; b < kCount; ++b, ++pair) {
#pragma unroll
        for (int j = 0; j < 2; ++j) sums[pair][j] = __fma_rn(deltas[a][j], deltas[b][j], sums[pair][j]);
      }
    }
  }
  // Lane i with lane i + 128, then i + 64, and so on: thread t with t + 64, with t + 32, and so on in its warp. Upper
  // halves put their sums down, a pair at a time and in turns of two places.
  __syncthreads();
  double* const places = dynamic_shared<double>();
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    double (&mine)[2] = sums[pair];
#pragma unroll
    for (int half = kThreads / 2; half >= kWarp; half /= 2) {
      double* const place = places + (half == kThreads / 2 ? 0 : kThreads) + 2 * (thread % half);
      if (thread >= static_cast<unsigned>(half) && thread < 2u * half) place[0] = mine[0], place[1] = mine[1];
      __syncthreads();
      if (thread < static_cast<unsigned>(half)) mine[0] = mine[0] + place[0], mine[1] = mine[1] + place[1];
    }
    if (warp == 0) {
#pragma unroll
      for (int threads = kWarp / 2; threads > 0; threads /= 2) {
#pragma unroll
        for (int j = 0; j < 2; ++j) mine[j] = mine[j] + __shfl_down_sync(0xFFFFFFFFu, mine[j], threads);
      }
      if (thread == 0) p.partials[std::int64_t{blockIdx.x} * kPairs + pair] = mine[0] + mine[1];
    }
  }
}

template <class T>
void gram_rows(double* partials, const Tensors& inputs, unsigned chunks, const std::string& what,
               const Stream& stream) {
  with_constant<kMany - kWhole>(inputs.count() - kWhole - 1, [&](auto more) {
    constexpr int kCount = decltype(more)::value + kWhole + 1;
    Whole<T, kCount> p{};
    for (int k = 0; k < kCount; ++k) p.tensors[k] = static_cast<const T*>(inputs.tensors[k].data);
    p.tensors[kCount] = static_cast<const T*>(inputs.base.data);
    p.partials = partials;
    const std::size_t shared = kStages * (kCount + 1) * kRowWords * sizeof(unsigned);
    launch(what, stream, gram_rows_kernel<T, kCount>, {chunks, kThreads, shared}, p);
  });
}

}  // namespace

void gram(double* partials, const Tensors& inputs, const Stream& stream) {
  if (inputs.size == 0) return;
  const int count = inputs.count(), side = (count + kTile - 1) / kTile;
  Input p{};
  for (int k = 0; k < count; ++k) p.tensors[k] = source(inputs.tensors[k], 0);
  p.base = source(inputs.base, 0);
  p.partials = partials;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.count = count;
  p.tiles = count <= kWhole ? 1 : side * (side + 1) / 2;
  const std::string what =
      "gram of " + std::to_string(count) + " tensors, " + std::to_string(inputs.size) + " elements";
  const Array first = inputs.tensors[0];
  if (count > kWhole && count <= kMany && first.dtype != kFloat32 && uniform(inputs, {nullptr, first.dtype}, 0)) {
    p.first = static_cast<std::int64_t>(inputs.size) / kGrid;
    const auto rows = first.dtype == kBFloat16 ? gram_rows<BFloat16> : gram_rows<Float16>;
    if (p.first > 0) rows(partials, inputs, static_cast<unsigned>(p.first), what, stream);
    // The rest of the last chunk.
    if (inputs.size % kGrid == 0) return;
  }
  p.units = (static_cast<std::int64_t>(chunks_of(inputs.size)) - p.first) * p.tiles;
  const Grid grid{static_cast<unsigned>((p.units + kWarps - 1) / kWarps), kWarps * kWarp};
  with_dtype(inputs, [&](auto* dtype) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    if (count > kWhole) return launch(what, stream, gram_kernel<T, kTile, false>, grid, p);
    with_constant<kWhole>(
        count - 1, [&](auto less) { launch(what, stream, gram_kernel<T, decltype(less)::value + 1, true>, grid, p); });
  });
}

}  // namespace fastmerge::cuda
