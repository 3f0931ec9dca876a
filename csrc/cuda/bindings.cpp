// Python bindings of the CUDA backend: raw addresses and sizes, a device and a stream; no torch headers. The arguments
// were checked by kernels/*.py, which hold the contracts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arguments.h"
#include "operations.h"

namespace py = pybind11;
using namespace fastmerge;
using namespace fastmerge::cuda;

namespace {

// Device index and stream: kernels/_cuda.stream.
using StreamTuple = std::pair<int, Address>;

Stream stream(const StreamTuple& t) { return {t.first, reinterpret_cast<void*>(t.second)}; }

// Refuses to start where nothing can run, in one sentence.
void need_gpu() {
  static const std::string why = why_unavailable();
  if (!why.empty()) throw std::runtime_error("the cuda backend cannot run: " + why);
}

const Tensors& limited(const Tensors& inputs) {
  if (inputs.tensors.size() > kMaxTensors) {
    throw std::invalid_argument("the cuda backend takes at most " + std::to_string(kMaxTensors) + " tensors, got " +
                                std::to_string(inputs.tensors.size()) + "; pin another backend, as backend='triton'");
  }
  // Vectors of eight are counted in 32 bits.
  if (inputs.size >> 34) throw std::invalid_argument("the cuda backend takes at most 2 ** 34 elements of a tensor");
  return inputs;
}

Tensors inputs_of(const TensorsTuple& t) { return limited(tensors(t)); }

template <class Tuple>
auto jobs_of(const std::vector<Tuple>& tuples) {
  auto found = jobs(tuples);
  for (const auto& job : found) limited(job.inputs);
  return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fastmerge. Every tensor is an address, a dtype number and a number of elements.";
  m.attr("interface") = kInterface;
  m.attr("max_tensors") = kMaxTensors;
  m.def("why_unavailable", &why_unavailable, "The reason why no kernel can run here; empty where one can.");

  m.def("weighted_sum", [](const std::vector<SumTuple>& tuples, const StreamTuple& where) {
    need_gpu();
    weighted_sum(jobs_of(tuples), stream(where));
  });

  m.def("sparse_merge", [](const std::vector<MergeTuple>& tuples, const StreamTuple& where) {
    need_gpu();
    sparse_merge(jobs_of(tuples), stream(where));
  });

  m.def("gram", [](Address partials, const TensorsTuple& inputs, const StreamTuple& where) {
    need_gpu();
    gram(reinterpret_cast<double*>(partials), inputs_of(inputs), stream(where));
  });

  m.def("norms", [](Address partials, const TensorsTuple& tuple, const std::vector<KeepTuple>& keeps, int power,
                    std::uint64_t offset, const StreamTuple& where) {
    need_gpu();
    const Tensors inputs = inputs_of(tuple);
    expect(keeps.size(), inputs, "keeps");
    norms(reinterpret_cast<double*>(partials), inputs, keep_rules(keeps), power, offset, stream(where));
  });

  m.def("exact_sums", [](Address sums, const std::vector<std::tuple<Address, std::int64_t, unsigned>>& tuples,
                         const StreamTuple& where) {
    need_gpu();
    std::vector<SumTable> tables;
    for (const auto& [address, rows, columns] : tuples) {
      tables.push_back({reinterpret_cast<const double*>(address), rows, columns});
    }
    exact_sums(reinterpret_cast<double*>(sums), tables, stream(where));
  });
  m.def("matched_factors", [](Address factors, Address sums,
                              const std::vector<std::pair<std::vector<double>, double>>& tuples,
                              const StreamTuple& where) {
    need_gpu();
    std::vector<FactorRule> rules;
    for (const auto& [weights, least] : tuples) {
      if (weights.empty() || weights.size() > kMaxTensors) {
        throw std::invalid_argument("weights: expected 1 .. " + std::to_string(kMaxTensors));
      }
      rules.push_back({weights, least});
    }
    matched_factors(reinterpret_cast<float*>(factors), reinterpret_cast<const double*>(sums), rules, stream(where));
  });
  m.def("arc_weights", [](Address weights, Address sums, const std::vector<double>& places, const StreamTuple& where) {
    need_gpu();
    arc_weights(reinterpret_cast<float*>(weights), reinterpret_cast<const double*>(sums), places, stream(where));
  });

  m.def("rank_mask", [](Address mask, const TensorsTuple& tuple, const std::array<std::int64_t, 3>& shape,
                        std::uint32_t first, std::uint64_t step, std::uint64_t key, std::uint32_t model,
                        std::int64_t offset, Address workspace, const StreamTuple& where) {
    need_gpu();
    const Tensors inputs = inputs_of(tuple);
    const RankJob job{reinterpret_cast<std::uint32_t*>(mask),
                      inputs.tensors[0],
                      inputs.base,
                      shape[1],
                      shape[2],
                      first,
                      step,
                      key,
                      model,
                      offset};
    rank_mask(job, shape[0], reinterpret_cast<void*>(workspace), stream(where));
  });
  m.def("rank_workspace", [](std::int64_t rows, std::int64_t length, const StreamTuple& where) {
    need_gpu();
    return rank_workspace(rows, length, where.first);
  });

  m.def("low_rank", [](const ArrayTuple& out, const ArrayTuple& weight, Address up, Address down, std::size_t rows,
                       std::size_t columns, std::size_t rank, float scale, const StreamTuple& where) {
    need_gpu();
    low_rank(output(out), array(weight), reinterpret_cast<const float*>(up), reinterpret_cast<const float*>(down), rows,
             columns, rank, scale, stream(where));
  });

  using SettingsPair = std::pair<double, double>;
  m.def("select_workspace", [](const std::vector<SelectTuple>& tuples, const SettingsPair& settings) {
    return select_workspace(jobs_of(tuples), {settings.first, settings.second});
  });
  m.def("select", [](Address results, Address workspace, const std::vector<SelectTuple>& tuples,
                     const SettingsPair& settings, const StreamTuple& where) {
    need_gpu();
    select(reinterpret_cast<std::int64_t*>(results), reinterpret_cast<void*>(workspace), jobs_of(tuples),
           {settings.first, settings.second}, stream(where));
  });

  m.def("magnitude_histogram",
        [](Address counts, const TensorsTuple& tuple, int level, const Ints& prefixes, const StreamTuple& where) {
          need_gpu();
          const Tensors inputs = inputs_of(tuple);
          if (level != 0) expect(prefixes.size(), inputs, "prefixes");
          magnitude_histogram(reinterpret_cast<std::int64_t*>(counts), inputs, level, prefixes, stream(where));
        });

  m.def("equal_counts",
        [](Address counts, const TensorsTuple& tuple, const Ints& thresholds, const StreamTuple& where) {
          need_gpu();
          const Tensors inputs = inputs_of(tuple);
          expect(thresholds.size(), inputs, "thresholds");
          equal_counts(reinterpret_cast<std::int64_t*>(counts), inputs, thresholds, stream(where));
        });
}
