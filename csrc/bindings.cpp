// Python bindings of the CPU backend: raw addresses and sizes, no torch headers. The GIL is released around long loops.
// The arguments were checked by kernels/*.py, which hold the contracts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "arguments.h"
#include "cpu/ahead.h"
#include "cpu/mapped.h"
#include "cpu/operations.h"
#include "cpu/streamed.h"
#include "cpu/threads.h"
#include "exact_sum.h"

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
  explicit Unlocked(const Tensors& inputs) : Unlocked(inputs.size) {}
  template <class Job>
  explicit Unlocked(const std::vector<Job>& jobs) : Unlocked(elements_of(jobs)) {}

 private:
  template <class Job>
  static std::size_t elements_of(const std::vector<Job>& jobs) {
    std::size_t elements = 0;
    for (const Job& job : jobs) elements += job.inputs.size;
    return elements;
  }

  static constexpr std::size_t kLeast = std::size_t{1} << 15;
  std::optional<py::gil_scoped_release> release_;
};

py::buffer_info contiguous(const py::buffer& data) {
  py::buffer_info bytes = data.request();
  if (!PyBuffer_IsContiguous(bytes.view(), 'C')) throw std::invalid_argument("data: expected contiguous bytes");
  return bytes;
}

using SourceTuple = std::tuple<int, std::uint64_t, bool>;

// Runs the only job of a call on sources.
template <class Job>
py::object run_streamed(const std::vector<Job>& jobs, const std::vector<SourceTuple>& from, std::size_t cell,
                        bool finite) {
  if (jobs.size() != 1) throw std::invalid_argument("expected one job");
  std::vector<Source> sources;
  for (const auto& [fd, offset, look] : from) sources.push_back({fd, offset, look});
  std::optional<Digests> found;
  {
    const py::gil_scoped_release unlocked;
    found = streamed(jobs[0], sources, cell, finite);
  }
  if (!found) return py::none();
  py::list digests;
  for (const std::string& each : *found) digests.append(py::bytes(each));
  return digests;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastmerge. Every tensor is an address, a dtype number and a number of elements.";
  m.attr("interface") = kInterface;

  m.def("isa", [] { return loops().name; }, "The instruction set in use.");
  m.def("available_isas", &available_loops, "The instruction sets that run here, narrowest first.");
  m.def("set_isa", &choose_loops, "Choose the instruction set; 'auto' takes the widest. All return the same bits.");
  m.def("get_threads", &threads);
  m.def("set_threads", [](int count) {
    if (count < 1) throw std::invalid_argument("threads is " + std::to_string(count) + "; expected at least 1");
    set_threads(count);
  });

  m.def("weighted_sum", [](const py::buffer& ints, const py::buffer& floats) {
    const std::vector<SumJob> work = Arguments(ints, floats).sums();
    const Unlocked unlocked(work);
    weighted_sum(work);
  });

  m.def("sparse_merge", [](const py::buffer& ints, const py::buffer& floats) {
    const std::vector<MergeJob> work = Arguments(ints, floats).merges();
    const Unlocked unlocked(work);
    sparse_merge(work);
  });

  m.def(
      "streamed_sum",
      [](const py::buffer& ints, const py::buffer& floats, const std::vector<SourceTuple>& sources, std::size_t cell,
         bool finite) { return run_streamed(Arguments(ints, floats).sums(), sources, cell, finite); },
      "See csrc/cpu/streamed.h. A source is a descriptor, an offset, and whether its numbers have to be finite.");

  m.def("streamed_merge",
        [](const py::buffer& ints, const py::buffer& floats, const std::vector<SourceTuple>& sources, std::size_t cell,
           bool finite) { return run_streamed(Arguments(ints, floats).merges(), sources, cell, finite); });

  m.def("gram", [](Address partials, const Ints& arrays) {
    const Tensors inputs = tensors(arrays);
    const Unlocked unlocked(inputs);
    gram(reinterpret_cast<double*>(partials), inputs);
  });

  m.def("norms", [](Address partials, const Ints& arrays, const Ints& rules, int power, std::uint64_t offset) {
    const Tensors inputs = tensors(arrays);
    const std::vector<Keep> keeps = keep_rules(rules, inputs);
    const Unlocked unlocked(inputs);
    norms(reinterpret_cast<double*>(partials), inputs, keeps, power, offset);
  });

  m.def(
      "select",
      [](const py::buffer& ints) {
        const std::vector<SelectJob> work = select_jobs(ints);
        std::vector<Boundary> found;
        {
          const Unlocked unlocked(work);
          found = select(work);
        }
        std::vector<std::pair<std::int64_t, std::int64_t>> result;
        for (const Boundary& boundary : found) result.emplace_back(boundary.threshold, boundary.break_index);
        return result;
      },
      "Threshold and break index per rank, in the order of jobs, tensors and ranks.");

  m.def("select_fallbacks", &select_fallbacks, "Boundaries that a sample misled, since import: histograms found them.");

  m.def("magnitude_histogram", [](Address counts, const Ints& arrays, int level, const Ints& prefixes) {
    const Tensors inputs = tensors(arrays);
    if (level != 0) expect(prefixes.size(), inputs, "prefixes");
    const Unlocked unlocked(inputs);
    magnitude_histogram(reinterpret_cast<std::int64_t*>(counts), inputs, level, prefixes);
  });

  m.def("equal_counts", [](Address counts, const Ints& arrays, const Ints& thresholds) {
    const Tensors inputs = tensors(arrays);
    expect(thresholds.size(), inputs, "thresholds");
    const Unlocked unlocked(inputs);
    equal_counts(reinterpret_cast<std::int64_t*>(counts), inputs, thresholds);
  });

  // Per model: its number, and first and step of its drop thresholds.
  using Draw = std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>;
  m.def("rank_mask", [](const std::vector<Address>& masks, const Ints& arrays, const std::vector<Draw>& draws,
                        const std::array<std::size_t, 3>& shape, std::uint64_t key, std::uint64_t offset) {
    const Tensors inputs = tensors(arrays);
    expect(masks.size(), inputs, "masks");
    expect(draws.size(), inputs, "draws");
    RankRows rows{{}, inputs.base, shape[1], shape[2], key};
    for (std::size_t k = 0; k < draws.size(); ++k) {
      const auto& [model, first, step] = draws[k];
      rows.models.push_back({inputs.tensors[k], model, first, step, reinterpret_cast<std::uint32_t*>(masks[k])});
    }
    const Unlocked unlocked(inputs);
    rank_mask(rows, shape[0], offset);
  });

  m.def(
      "exact_sums",
      [](Address table, std::size_t rows, std::size_t columns) {
        const double* value = reinterpret_cast<const double*>(table);
        std::vector<ExactSum<>> sums(columns);
        const Unlocked unlocked(8 * rows * columns);
        for (std::size_t row = 0; row < rows; ++row) {
          for (ExactSum<>& sum : sums) sum.add(*value++);
        }
        std::vector<double> rounded;
        for (const ExactSum<>& sum : sums) rounded.push_back(sum.rounded());
        return rounded;
      },
      "The sums of the columns of a float64 table, each rounded once.");

  m.def(
      "cell_digests",
      [](const py::buffer& data, std::size_t step) {
        const py::buffer_info bytes = contiguous(data);
        const std::size_t nbytes = static_cast<std::size_t>(bytes.size * bytes.itemsize);
        if (step == 0) throw std::invalid_argument("step: expected at least one byte");
        std::string digests(8 * std::max<std::size_t>(1, (nbytes + step - 1) / step), '\0');
        {
          const Unlocked unlocked(nbytes / 2);
          loops().cell_digests(reinterpret_cast<unsigned char*>(digests.data()),
                               static_cast<const unsigned char*>(bytes.ptr), nbytes, step);
        }
        return py::bytes(digests);
      },
      "The xxh3-64 of every `step` bytes, big-endian, in one string.");

  m.def(
      "all_finite",
      [](const py::buffer& data, int dtype) {
        const py::buffer_info bytes = contiguous(data);
        const std::size_t count = static_cast<std::size_t>(bytes.size * bytes.itemsize) / (dtype == kFloat32 ? 4 : 2);
        const Unlocked unlocked(count);
        return loops().all_finite({bytes.ptr, dtype}, count);
      },
      "Whether no number of a dtype in these bytes is infinite or NaN.");

  using FileTuple = std::tuple<int, int, std::uint64_t>;
  using RangeTuple = std::tuple<std::size_t, std::uint64_t, std::uint64_t>;
  py::class_<ReadAhead>(m, "ReadAhead", "See csrc/cpu/ahead.h.")
      .def(py::init([](const std::vector<FileTuple>& files, const std::vector<std::vector<RangeTuple>>& groups,
                       std::uint64_t step, std::size_t block, std::size_t buffers, std::size_t threads) {
             std::vector<AheadFile> opened;
             for (const auto& [direct, plain, nbytes] : files) opened.push_back({direct, plain, nbytes});
             std::vector<std::vector<AheadRange>> order;
             for (const std::vector<RangeTuple>& group : groups) {
               order.emplace_back();
               for (const auto& [file, offset, nbytes] : group) {
                 if (file >= opened.size()) throw std::invalid_argument("groups: no such file");
                 order.back().push_back({file, offset, nbytes});
               }
             }
             if (step == 0 || block == 0 || block % 4096) throw std::invalid_argument("block: expected whole pages");
             return std::make_unique<ReadAhead>(std::move(opened), std::move(order), step, block, buffers, threads);
           }),
           py::arg("files"), py::arg("groups"), py::arg("step"), py::arg("block"), py::arg("buffers"),
           py::arg("threads"))
      .def("read",
           [](ReadAhead& self, std::size_t file, std::uint64_t offset, const py::buffer& into) {
             const py::buffer_info bytes = into.request(true);
             const std::uint64_t nbytes = static_cast<std::uint64_t>(bytes.size * bytes.itemsize);
             const py::gil_scoped_release unlocked;
             return self.read(file, offset, nbytes, static_cast<char*>(bytes.ptr));
           })
      .def("stop", &ReadAhead::stop, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("served", &ReadAhead::served);

  py::class_<MappedFile>(m, "MappedFile", py::buffer_protocol(), "See csrc/cpu/mapped.h.")
      .def(py::init<int, std::size_t>(), py::arg("fd"), py::arg("nbytes"))
      .def_buffer([](const MappedFile& self) {
        return py::buffer_info(const_cast<char*>(self.data()), 1, "B", 1, {self.size()}, {1}, true);
      })
      .def_property_readonly("address", [](const MappedFile& self) { return reinterpret_cast<Address>(self.data()); })
      .def_property_readonly("broken", &MappedFile::broken)
      .def("forget", &MappedFile::forget, py::call_guard<py::gil_scoped_release>());

  m.def("low_rank", [](const ArrayTuple& out, const ArrayTuple& weight, Address up, Address down, std::size_t rows,
                       std::size_t columns, std::size_t rank, float scale) {
    const Unlocked unlocked(rows * columns * rank);
    low_rank(output(out), array(weight), reinterpret_cast<const float*>(up), reinterpret_cast<const float*>(down), rows,
             columns, rank, scale);
  });
}
