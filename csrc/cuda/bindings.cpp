// Python bindings of the CUDA backend: raw addresses and sizes, a device and a stream; no torch headers. The arguments
// were checked by kernels/*.py, which hold the contracts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arguments.h"
#include "fastmerge_math.h"
#include "operations.h"

namespace py = pybind11;
using namespace fastmerge;
using namespace fastmerge::cuda;

namespace {

using ArrayTuple = std::pair<Address, int>;
// Addresses and dtypes of the tensors, address and dtype of the base, elements: kernels/_native.group.
using GroupTuple = std::tuple<std::vector<Address>, std::vector<int>, Address, int, std::size_t>;
// Device index and stream: kernels/_cuda.place.
using PlaceTuple = std::pair<int, Address>;

Output output(const ArrayTuple& t) { return fastmerge::output(t.first, t.second); }
Place place(const PlaceTuple& t) { return {t.first, reinterpret_cast<void*>(t.second)}; }

Group group(const GroupTuple& t) {
  const auto& [tensors, dtypes, base, base_dtype, size] = t;
  if (tensors.size() > kMaxTensors) {
    throw std::invalid_argument("the cuda backend takes at most " + std::to_string(kMaxTensors) + " tensors, got " +
                                std::to_string(tensors.size()) + "; pin another backend, as backend='triton'");
  }
  return fastmerge::group(tensors, dtypes, base, base_dtype, size);
}

// Refuses to start where nothing can run, in one sentence.
void need_gpu() {
  static const std::string why = why_unavailable();
  if (!why.empty()) throw std::runtime_error("the cuda backend cannot run: " + why);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fastmerge. Every tensor is an address, a dtype number and a number of elements.";
  m.attr("max_tensors") = kMaxTensors;
  m.def("why_unavailable", &why_unavailable, "The reason why no kernel can run here; empty where one can.");

  m.def("weighted_sum",
        [](const std::vector<std::tuple<ArrayTuple, GroupTuple, std::vector<float>>>& tuples, const PlaceTuple& where) {
          need_gpu();
          std::vector<SumJob> jobs;
          for (const auto& [out, inputs, weights] : tuples) {
            jobs.push_back({output(out), group(inputs), weights});
            expect(weights.size(), jobs.back().inputs, "weights");
          }
          weighted_sum(jobs, place(where));
        });

  using MergeTuple =
      std::tuple<ArrayTuple, GroupTuple, std::vector<float>, std::vector<float>, std::vector<KeepTuple>,
                 std::pair<int, int>, std::pair<float, float>, std::uint64_t>;
  m.def("sparse_merge", [](const std::vector<MergeTuple>& tuples, const PlaceTuple& where) {
    need_gpu();
    std::vector<MergeJob> jobs;
    for (const auto& [out, inputs, factors, weights, keeps, how, scalars, offset] : tuples) {
      const auto [vote, divide] = how;
      jobs.push_back({output(out), group(inputs), factors, weights, keep_rules(keeps), vote,
                      divide != fastmerge::kDivideNone, scalars.second, scalars.first, offset});
      MergeJob& job = jobs.back();
      expect(factors.size(), job.inputs, "factors");
      expect(weights.size(), job.inputs, "weights");
      expect(keeps.size(), job.inputs, "keeps");
      if (divide == fastmerge::kDivideCount) job.weights.assign(weights.size(), 1.0f);
    }
    sparse_merge(jobs, place(where));
  });

  m.def("gram", [](Address partials, const GroupTuple& inputs, const PlaceTuple& where) {
    need_gpu();
    gram(reinterpret_cast<double*>(partials), group(inputs), place(where));
  });

  m.def("norms", [](Address partials, const GroupTuple& inputs, const std::vector<KeepTuple>& keeps, int power,
                    std::uint64_t offset, const PlaceTuple& where) {
    need_gpu();
    const Group tensors = group(inputs);
    expect(keeps.size(), tensors, "keeps");
    norms(reinterpret_cast<double*>(partials), tensors, keep_rules(keeps), power, offset, place(where));
  });

  m.def("rank_mask", [](Address mask, const GroupTuple& inputs, const std::array<std::int64_t, 3>& shape,
                        std::uint32_t first, std::uint64_t step, std::uint64_t key, std::uint32_t model,
                        Address workspace, const PlaceTuple& where) {
    need_gpu();
    const Group tensors = group(inputs);
    const RankJob job{reinterpret_cast<std::uint32_t*>(mask), tensors.tensors[0], tensors.base, shape[1], shape[2],
                      first, step, key, model};
    rank_mask(job, shape[0], reinterpret_cast<void*>(workspace), place(where));
  });
  m.def("rank_workspace", [](std::int64_t rows, std::int64_t length, const PlaceTuple& where) {
    need_gpu();
    return rank_workspace(rows, length, where.first);
  });

  m.def("low_rank", [](const ArrayTuple& out, const ArrayTuple& weight, Address up, Address down, std::size_t rows,
                       std::size_t columns, std::size_t rank, float scale, const PlaceTuple& where) {
    need_gpu();
    low_rank(output(out), array(weight.first, weight.second), reinterpret_cast<const float*>(up),
             reinterpret_cast<const float*>(down), rows, columns, rank, scale, place(where));
  });

  using SelectTuple = std::pair<GroupTuple, std::vector<std::vector<std::size_t>>>;
  using SettingsPair = std::pair<double, double>;
  const auto select_jobs = [](const std::vector<SelectTuple>& tuples) {
    std::vector<SelectJob> jobs;
    for (const auto& [inputs, ranks] : tuples) {
      jobs.push_back({group(inputs), ranks});
      expect(ranks.size(), jobs.back().inputs, "ranks");
      for (const auto& wanted : ranks) {
        for (const std::size_t rank : wanted) {
          if (rank > 0 && rank < jobs.back().inputs.size) continue;
          throw std::invalid_argument("ranks: expected 0 < rank < size");
        }
      }
    }
    return jobs;
  };
  m.def("select_workspace", [=](const std::vector<SelectTuple>& tuples, const SettingsPair& settings) {
    return select_workspace(select_jobs(tuples), {settings.first, settings.second});
  });
  m.def("select", [=](Address results, Address workspace, const std::vector<SelectTuple>& tuples,
                      const SettingsPair& settings, const PlaceTuple& where) {
    need_gpu();
    select(reinterpret_cast<std::int64_t*>(results), reinterpret_cast<void*>(workspace), select_jobs(tuples),
           {settings.first, settings.second}, place(where));
  });

  m.def("magnitude_histogram", [](Address counts, const GroupTuple& inputs, int level, const Ints& prefixes,
                                  const PlaceTuple& where) {
    need_gpu();
    const Group tensors = group(inputs);
    if (level != 0) expect(prefixes.size(), tensors, "prefixes");
    magnitude_histogram(reinterpret_cast<std::int64_t*>(counts), tensors, level, prefixes, place(where));
  });

  m.def("equal_counts", [](Address counts, const GroupTuple& inputs, const Ints& thresholds, const PlaceTuple& where) {
    need_gpu();
    const Group tensors = group(inputs);
    expect(thresholds.size(), tensors, "thresholds");
    equal_counts(reinterpret_cast<std::int64_t*>(counts), tensors, thresholds, place(where));
  });
}
