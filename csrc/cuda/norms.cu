// Norms of deltas, whole and over what a keep rule keeps, in float64 over the reduction grid. A warp owns a chunk of
// one delta.
#include "grid.h"
#include "keep.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarps = 4;

struct Input {
  Source tensors[kMaxTensors];
  KeepRule rules[kMaxTensors];
  Source base;
  double* partials;
  std::int64_t size, units;  // units: chunks times tensors
  int count;
  bool squared;
};

__global__ void __launch_bounds__(kWarps* kWarp) norms_kernel(const __grid_constant__ Input p) {
  const std::int64_t unit = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (unit >= p.units) return;
  // Deltas of one chunk run side by side, so that the base comes from memory once and then from the cache.
  const std::int64_t chunk = unit / p.count;
  const int k = static_cast<int>(unit % p.count);
  double all[kVector] = {}, inside[kVector] = {};
  visit_chunk(chunk, p.size, [&](std::int64_t element, Range range) {
    float delta[kVector];
    load_delta(p.tensors[k], p.base, element, range, delta);
    keep_vector<true>(p.rules[k], delta, element / kVector, range, [&](int j, bool kept) {
      const double x = delta[j];
      const double power = p.squared ? x * x : std::fabs(x);
      all[j] = all[j] + power;
      // Multiplied rather than selected: a dropped NaN stays visible. The product is exact.
      inside[j] = __fma_rn(power, kept ? 1.0 : 0.0, inside[j]);
    });
  });
  const double total = tree_sum(all), kept = tree_sum(inside);
  if (threadIdx.x % kWarp == 0) {
    double* const out = p.partials + 2 * unit;
    out[0] = total;
    out[1] = kept;
  }
}

}  // namespace

void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           const Stream& stream) {
  if (inputs.size == 0) return;
  Input p{};
  p.count = inputs.count();
  for (int k = 0; k < p.count; ++k) {
    p.tensors[k] = source(inputs.tensors[k], 0);
    p.rules[k] = make_rule(keeps[k], offset, 0);
  }
  p.base = source(inputs.base, 0);
  p.partials = partials;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.units = static_cast<std::int64_t>(chunks_of(inputs.size)) * p.count;
  p.squared = power == 2;
  const std::string what =
      "norms of " + std::to_string(p.count) + " tensors, " + std::to_string(inputs.size) + " elements";
  launch(what, stream, norms_kernel, {static_cast<unsigned>((p.units + kWarps - 1) / kWarps), kWarps * kWarp}, p);
}

}  // namespace fastmerge::cuda
