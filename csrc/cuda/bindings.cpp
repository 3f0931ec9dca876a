// Python bindings of the CUDA backend: raw addresses and sizes, a device and a stream; no torch headers. The arguments
// were checked by kernels/*.py, which hold the contracts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

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

Tensors inputs_of(const Ints& arrays) { return limited(tensors(arrays)); }

template <class Job>
std::vector<Job> limited(std::vector<Job> jobs) {
  for (const Job& job : jobs) limited(job.inputs);
  return jobs;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fastmerge. Every tensor is an address, a dtype number and a number of elements.";
  m.attr("interface") = kInterface;
  m.attr("max_tensors") = kMaxTensors;
  m.def("why_unavailable", &why_unavailable, "The reason why no kernel can run here; empty where one can.");

  m.def("weighted_sum", [](const py::buffer& ints, const py::buffer& floats, const StreamTuple& where) {
    need_gpu();
    weighted_sum(limited(Arguments(ints, floats).sums()), stream(where));
  });

  m.def("sparse_merge", [](const py::buffer& ints, const py::buffer& floats, const StreamTuple& where) {
    need_gpu();
    sparse_merge(limited(Arguments(ints, floats).merges()), stream(where));
  });

  m.def("gram", [](Address partials, const Ints& arrays, const StreamTuple& where) {
    need_gpu();
    gram(reinterpret_cast<double*>(partials), inputs_of(arrays), stream(where));
  });

  m.def("norms", [](Address partials, const Ints& arrays, const Ints& rules, int power, std::uint64_t offset,
                    const StreamTuple& where) {
    need_gpu();
    const Tensors inputs = inputs_of(arrays);
    norms(reinterpret_cast<double*>(partials), inputs, keep_rules(rules, inputs), power, offset, stream(where));
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

  // Per model: its number, and first and step of its drop thresholds.
  using Draw = std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>;
  m.def("rank_mask", [](const std::vector<Address>& masks, const Ints& arrays, const std::vector<Draw>& draws,
                        const std::array<std::int64_t, 3>& shape, std::uint64_t key, std::int64_t offset,
                        Address workspace, const StreamTuple& where) {
    need_gpu();
    const Tensors inputs = inputs_of(arrays);
    expect(masks.size(), inputs, "masks");
    expect(draws.size(), inputs, "draws");
    RankJob job{{}, inputs.base, shape[0], shape[1], shape[2], key, offset};
    for (std::size_t k = 0; k < draws.size(); ++k) {
      const auto& [model, first, step] = draws[k];
      job.models.push_back({reinterpret_cast<std::uint32_t*>(masks[k]), inputs.tensors[k], step, first, model});
    }
    rank_mask(job, reinterpret_cast<void*>(workspace), stream(where));
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

  // How wide brackets are, how much room there is (SelectSettings), and the bytes that jobs share.
  using SettingsTuple = std::tuple<double, double, std::size_t>;
  const auto settings_of = [](const SettingsTuple& t) {
    return SelectSettings{std::get<0>(t), std::get<1>(t), std::get<2>(t)};
  };
  m.def("select_workspace", [=](const py::buffer& ints, const SettingsTuple& settings) {
    return select_workspace(limited(select_jobs(ints)), settings_of(settings));
  });
  m.def("select", [=](Address results, Address workspace, const py::buffer& ints, const SettingsTuple& settings,
                      const StreamTuple& where) {
    need_gpu();
    select(reinterpret_cast<std::int64_t*>(results), reinterpret_cast<void*>(workspace), limited(select_jobs(ints)),
           settings_of(settings), stream(where));
  });

  m.def("magnitude_histogram",
        [](Address counts, const Ints& arrays, int level, const Ints& prefixes, const StreamTuple& where) {
          need_gpu();
          const Tensors inputs = inputs_of(arrays);
          if (level != 0) expect(prefixes.size(), inputs, "prefixes");
          magnitude_histogram(reinterpret_cast<std::int64_t*>(counts), inputs, level, prefixes, stream(where));
        });

  m.def("equal_counts", [](Address counts, const Ints& arrays, const Ints& thresholds, const StreamTuple& where) {
    need_gpu();
    const Tensors inputs = inputs_of(arrays);
    expect(thresholds.size(), inputs, "thresholds");
    equal_counts(reinterpret_cast<std::int64_t*>(counts), inputs, thresholds, stream(where));
  });
}
