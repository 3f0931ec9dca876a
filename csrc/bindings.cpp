// Python bindings of the CPU backend: raw addresses and sizes, no torch headers. The GIL is released around long loops.
// The arguments were checked by kernels/*.py, which hold the contracts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "arguments.h"
#include "cpu/operations.h"
#include "cpu/threads.h"
#include "fastmerge_math.h"

namespace py = pybind11;
using namespace fastmerge;
using namespace fastmerge::cpu;

namespace {

// Releases the GIL for loops over many elements. Short ones keep it: when several threads merge tiny tensors, getting
// it back costs more than the work.
class Unlocked {
 public:
  explicit Unlocked(std::size_t elements) {
    if (elements >= kLeast) release_.emplace();
  }

 private:
  static constexpr std::size_t kLeast = std::size_t{1} << 15;
  std::optional<py::gil_scoped_release> release_;
};

// The divisor of a sum without a vote, accumulated in the order of the models.
float constant_divisor(int divide, const std::vector<float>& weights) {
  if (divide == fastmerge::kDivideCount) return static_cast<float>(weights.size());
  float total = weights[0];
  for (std::size_t k = 1; k < weights.size(); ++k) total = total + weights[k];
  return std::fabs(total) < 1e-8f ? 1.0f : total;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastmerge. Every tensor is an address, a dtype number and a number of elements.";

  m.def("isa", [] { return loops().name; }, "The instruction set in use.");
  m.def("available_isas", &available_loops, "The instruction sets that run here, narrowest first.");
  m.def("set_isa", &choose_loops, "Choose the instruction set; 'auto' takes the widest. All return the same bits.");
  m.def("get_threads", &threads);
  m.def("set_threads", [](int count) {
    if (count < 1) throw std::invalid_argument("threads is " + std::to_string(count) + "; expected at least 1");
    set_threads(count);
  });

  m.def("weighted_sum",
        [](Address out, int out_dtype, const std::vector<Address>& tensors, const std::vector<int>& dtypes,
           Address base, int base_dtype, std::size_t size, const std::vector<float>& weights) {
          const Group inputs = group(tensors, dtypes, base, base_dtype, size);
          expect(weights.size(), inputs, "weights");
          const Unlocked unlocked(size);
          weighted_sum(output(out, out_dtype), inputs, weights);
        });

  m.def("sparse_merge", [](Address out, int out_dtype, const std::vector<Address>& tensors,
                           const std::vector<int>& dtypes, Address base, int base_dtype, std::size_t size,
                           const std::vector<float>& factors, const std::vector<float>& weights,
                           const std::vector<KeepTuple>& keeps, int vote, int divide, float scale,
                           std::uint64_t offset) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    expect(factors.size(), inputs, "factors");
    expect(weights.size(), inputs, "weights");
    expect(keeps.size(), inputs, "keeps");
    const bool divides = divide != fastmerge::kDivideNone;
    Merge merge{factors, weights, keep_rules(keeps), vote, scale, constant_divisor(divide, weights), divides, offset};
    if (divide == fastmerge::kDivideCount) merge.weights.assign(weights.size(), 1.0f);
    const Unlocked unlocked(size);
    sparse_merge(output(out, out_dtype), inputs, merge);
  });

  m.def("gram", [](Address partials, const std::vector<Address>& tensors, const std::vector<int>& dtypes, Address base,
                   int base_dtype, std::size_t size) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    const Unlocked unlocked(size);
    gram(reinterpret_cast<double*>(partials), inputs);
  });

  m.def("norms",
        [](Address partials, const std::vector<Address>& tensors, const std::vector<int>& dtypes, Address base,
           int base_dtype, std::size_t size, const std::vector<KeepTuple>& keeps, int power, std::uint64_t offset) {
          const Group inputs = group(tensors, dtypes, base, base_dtype, size);
          expect(keeps.size(), inputs, "keeps");
          const Unlocked unlocked(size);
          norms(reinterpret_cast<double*>(partials), inputs, keep_rules(keeps), power, offset);
        });

  m.def("select", [](const std::vector<Address>& tensors, const std::vector<int>& dtypes, Address base, int base_dtype,
                     std::size_t size, const std::vector<std::vector<std::size_t>>& ranks) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    expect(ranks.size(), inputs, "ranks");
    for (const auto& wanted : ranks) {
      for (const std::size_t rank : wanted) {
        if (rank == 0 || rank >= size) throw std::invalid_argument("ranks: expected 0 < rank < size");
      }
    }
    std::vector<std::vector<Boundary>> found;
    {
      const Unlocked unlocked(size);
      found = select(inputs, ranks);
    }
    std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> result;
    for (const auto& boundaries : found) {
      result.emplace_back();
      for (const Boundary& boundary : boundaries) result.back().emplace_back(boundary.threshold, boundary.break_index);
    }
    return result;
  });

  m.def("select_fallbacks", &select_fallbacks, "Boundaries that a sample misled, since import: histograms found them.");

  m.def("magnitude_histogram", [](Address counts, const std::vector<Address>& tensors, const std::vector<int>& dtypes,
                                  Address base, int base_dtype, std::size_t size, int level, const Ints& prefixes) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    if (level != 0) expect(prefixes.size(), inputs, "prefixes");
    const Unlocked unlocked(size);
    magnitude_histogram(reinterpret_cast<std::int64_t*>(counts), inputs, level, prefixes);
  });

  m.def("equal_counts", [](Address counts, const std::vector<Address>& tensors, const std::vector<int>& dtypes,
                           Address base, int base_dtype, std::size_t size, const Ints& thresholds) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    expect(thresholds.size(), inputs, "thresholds");
    const Unlocked unlocked(size);
    equal_counts(reinterpret_cast<std::int64_t*>(counts), inputs, thresholds);
  });

  m.def("rank_mask", [](Address mask, const std::vector<Address>& tensors, const std::vector<int>& dtypes, Address base,
                        int base_dtype, std::size_t size, const std::array<std::size_t, 3>& shape, std::uint32_t first,
                        std::uint64_t step, std::uint64_t key, std::uint32_t model) {
    const Group inputs = group(tensors, dtypes, base, base_dtype, size);
    const RankRows rows{inputs.tensors[0], inputs.base, shape[1], shape[2], first, step, key, model};
    const Unlocked unlocked(size);
    rank_mask(reinterpret_cast<std::uint32_t*>(mask), rows, shape[0]);
  });

  m.def("low_rank", [](Address out, int out_dtype, Address weight, int weight_dtype, Address up, Address down,
                       std::size_t rows, std::size_t columns, std::size_t rank, float scale) {
    const Unlocked unlocked(rows * columns * rank);
    low_rank(output(out, out_dtype), array(weight, weight_dtype), reinterpret_cast<const float*>(up),
             reinterpret_cast<const float*>(down), rows, columns, rank, scale);
  });
}
