// Norms of deltas, whole and over what a keep rule keeps, in float64 over the reduction grid. A warp owns a chunk of
// all deltas, or of as many as its registers hold, so that the base is read and widened once.
#include <cuda_pipeline.h>

#include <algorithm>
#include <limits>

#include "grid.h"
#include "keep.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarps = 2;
// Deltas whose sums stay in registers: 32 of them each.
constexpr int kMost = 3;
// For rules of any kind; where all are of one kind, its code alone leaves registers for the sums of several deltas.
constexpr int kAnyKind = -1;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

template <int kModels>
struct Input {
  Source tensors[kModels];
  KeepRule rules[kModels];
  Source base;
  double* partials;  // of the first of these models
  std::int64_t size, chunks, columns;
};

// The vectors of a thread, row by row. Those of the next rows are on their way to places in shared memory that are its
// own, so that no thread waits for another.
constexpr int kStages = 4;

template <class T, int kTensors>
class Coming {
  static constexpr int kPieces = sizeof(Raw<T>) / sizeof(uint4);

 public:
  static constexpr std::size_t kShared = sizeof(uint4) * kStages * kTensors * kPieces * kWarps * kWarp;

  __device__ Coming() : places_(dynamic_shared<uint4>() + threadIdx.x) {}

  // Asks for a row more, or for none. From then on `take` gives the row that was asked for kStages - 1 calls before.
  template <class TensorOf>
  __device__ void ask(bool any, std::int64_t element, std::int64_t size, TensorOf tensor_of) {
#pragma unroll
    for (int k = 0; k < kTensors; ++k) {
      const Source& source = tensor_of(k);
      if (!any || !source.data) continue;
      if (element + kVector <= size) {
        const uint4* const from = reinterpret_cast<const uint4*>(static_cast<const T*>(source.data) + element);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) __pipeline_memcpy_async(place(k, i), from + i, sizeof(uint4));
      } else {
        const AnyRaw raw = load_any(source, element, range_at(element, size));
        *place(k, 0) = raw.words;
        if constexpr (kPieces == 2) *place(k, 1) = raw.more;
      }
    }
    // Also where nothing was copied: rows are counted.
    __pipeline_commit();
    stage_ = (stage_ + 1) % kStages;
    __pipeline_wait_prior(kStages - 1);
  }

  __device__ void take(int tensor, const Source&, std::int64_t, std::int64_t, float (&x)[kVector]) const {
    if constexpr (kPieces == 2) {
      widen(Raw<T>{*place(tensor, 0), *place(tensor, 1)}, x);
    } else {
      widen(Raw<T>{*place(tensor, 0)}, x);
    }
  }

 private:
  __device__ uint4* place(int tensor, int piece) const {
    return places_ + ((stage_ * kTensors + tensor) * kPieces + piece) * kWarps * kWarp;
  }

  uint4* places_;
  int stage_ = 0;
};

// Vectors of any dtype are loaded when they are taken.
template <int kTensors>
class Coming<void, kTensors> {
 public:
  static constexpr std::size_t kShared = 0;

  template <class TensorOf>
  __device__ void ask(bool, std::int64_t, std::int64_t, TensorOf) {}
  __device__ void take(int, const Source& source, std::int64_t element, std::int64_t size, float (&x)[kVector]) const {
    widen(load_any(source, element, range_at(element, size)), x);
  }
};

// Adds up a chunk. kMultiply: what is not kept is multiplied by 0 rather than left out, so that a dropped NaN or
// infinity stays visible; the same where all numbers are finite.
template <class T, int kModels, int kKind, bool kSquared, bool kMultiply>
__device__ inline void sum_chunk(const Input<kModels>& p, std::int64_t chunk, double (&all)[kModels][kVector],
                                 double (&inside)[kModels][kVector]) {
  const bool based = p.base.data != nullptr;
  const Rows rows(chunk, p.size);
  if (rows.count == 0) return;
  Band band;
  if constexpr (kKind == kAnyKind) {
    // What is kept by a boundary that was not found has no norm.
    if (!band_of(p.rules[0], band)) all[0][0] = inside[0][0] = kNone;
  }
  const auto tensor_of = [&](int k) -> const Source& { return k < kModels ? p.tensors[k] : p.base; };
  Coming<T, kModels + 1> coming;
#pragma unroll 1
  for (int row = 0; row < kStages - 1; ++row) {
    coming.ask(row < rows.count, rows.element + row * kLanes, p.size, tensor_of);
  }
  std::int64_t element = rows.element;
#pragma unroll 1
  for (int left = rows.count; left > 0; --left) {
    coming.ask(left >= kStages, element + (kStages - 1) * kLanes, p.size, tensor_of);
    // Subtracting +0, where there is no base, changes no magnitude.
    float base[kVector] = {};
    if (based) coming.take(kModels, p.base, element, p.size, base);
#pragma unroll
    for (int k = 0; k < kModels; ++k) {
      float delta[kVector];
      coming.take(k, p.tensors[k], element, p.size, delta);
#pragma unroll
      for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
      const auto add = [&](int j, bool kept) {
        const double x = std::fabs(delta[j]);
        const double power = kSquared ? x * x : x;
        all[k][j] = all[k][j] + power;
        if constexpr (kMultiply) {
          inside[k][j] = __fma_rn(power, kept ? 1.0 : 0.0, inside[k][j]);
        } else {
          if (kept) inside[k][j] = inside[k][j] + power;
        }
      };
      const Range range = range_at(element, p.size);
      if constexpr (kKind == kKeepRandom) {
        keep_random<true>(p.rules[k], p.rules[k].first + element, add);
      } else if constexpr (kKind == kKeepMask) {
        keep_masked<true>(p.rules[k], p.rules[k].first + element, range, add);
      } else {
        static_assert(kModels == 1, "one band");
        keep_vector<true>(p.rules[k], band, delta, static_cast<std::uint32_t>(element / kVector), range, add);
      }
    }
    element += kLanes;
  }
}

// Blocks that a multiprocessor should hold: the compiler fits registers to it.
template <class T, int kModels, int kKind>
constexpr int kBlocks = kModels == 1                               ? 8
                        : kModels == kMost && kKind == kKeepRandom ? 5
                                                                   : 6;

template <class T, int kModels, int kKind, bool kSquared>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<T, kModels, kKind>)
    norms_kernel(const __grid_constant__ Input<kModels> p) {
  const std::int64_t chunk = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (chunk >= p.chunks) return;
  double all[kModels][kVector] = {}, inside[kModels][kVector] = {};
  sum_chunk<T, kModels, kKind, kSquared, false>(p, chunk, all, inside);
  double totals[kModels], kept[kModels], sum = 0;
#pragma unroll
  for (int k = 0; k < kModels; ++k) {
    totals[k] = tree_sum(all[k]);
    kept[k] = tree_sum(inside[k]);
    sum += totals[k];
  }
  // Sums of powers of float32 never reach infinity.
  if (!(__shfl_sync(0xFFFFFFFFu, sum, 0) <= 1.7976931348623157e308)) {
#pragma unroll
    for (int k = 0; k < kModels; ++k) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) all[k][j] = inside[k][j] = 0;
    }
    sum_chunk<T, kModels, kKind, kSquared, true>(p, chunk, all, inside);
#pragma unroll
    for (int k = 0; k < kModels; ++k) {
      totals[k] = tree_sum(all[k]);
      kept[k] = tree_sum(inside[k]);
    }
  }
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int k = 0; k < kModels; ++k) {
      double* const out = p.partials + chunk * p.columns + 2 * k;
      out[0] = totals[k];
      out[1] = kept[k];
    }
  }
}

// The norms of kModels deltas from number `first` on.
template <class T, int kModels, int kKind, bool kSquared>
void launch_norms(double* partials, const Tensors& inputs, const std::vector<KeepRule>& rules, int first,
                  const Stream& stream) {
  Input<kModels> p{};
  for (int k = 0; k < kModels; ++k) {
    p.tensors[k] = source(inputs.tensors[first + k], 0);
    p.rules[k] = rules[first + k];
  }
  p.base = source(inputs.base, 0);
  p.partials = partials + 2 * first;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.chunks = static_cast<std::int64_t>(chunks_of(inputs.size));
  p.columns = 2 * inputs.count();
  const std::string what =
      "norms of " + std::to_string(kModels) + " tensors, " + std::to_string(inputs.size) + " elements";
  launch(what, stream, norms_kernel<T, kModels, kKind, kSquared>,
         {static_cast<unsigned>((p.chunks + kWarps - 1) / kWarps), kWarps * kWarp, Coming<T, kModels + 1>::kShared}, p);
}

// The norms of all deltas, whose rules are of one kind, in groups that are as even as can be.
template <class T, int kKind>
void launch_groups(double* partials, const Tensors& inputs, const std::vector<KeepRule>& rules, const Stream& stream) {
  const int count = inputs.count();
  for (int first = 0, groups = (count + kMost - 1) / kMost; groups > 0; --groups) {
    const int models = (count - first + groups - 1) / groups;
    with_constant<kMost>(models - 1, [&](auto less) {
      constexpr int kModels = decltype(less)::value + 1;
      launch_norms<T, kModels, kModels == 1 ? kAnyKind : kKind, false>(partials, inputs, rules, first, stream);
    });
    first += models;
  }
}

}  // namespace

void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           const Stream& stream) {
  if (inputs.size == 0) return;
  std::vector<KeepRule> rules;
  for (const Keep& keep : keeps) rules.push_back(make_rule(keep, offset, 0));
  const auto all_are = [&](Kind kind) {
    return power == 1 && std::all_of(rules.begin(), rules.end(), [=](const KeepRule& r) { return r.kind == kind; });
  };
  with_dtype(inputs, [&](auto* dtype) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    if constexpr (!std::is_void_v<T>) {
      if (all_are(kKeepRandom)) return launch_groups<T, kKeepRandom>(partials, inputs, rules, stream);
      if (all_are(kKeepMask)) return launch_groups<T, kKeepMask>(partials, inputs, rules, stream);
    }
    for (int first = 0; first < inputs.count(); ++first) {
      if (power == 2) {
        launch_norms<T, 1, kAnyKind, true>(partials, inputs, rules, first, stream);
      } else {
        launch_norms<T, 1, kAnyKind, false>(partials, inputs, rules, first, stream);
      }
    }
  });
}

}  // namespace fastmerge::cuda
