// How both bindings read the arguments that kernels/_native.py makes: integers in a row, scalars in another.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fastmerge_math.h"
#include "jobs.h"

namespace fastmerge {

// Raised whenever the arguments of a function change: kernels/_native.py refuses an extension with another number.
constexpr int kInterface = 13;

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;
// Address and dtype.
using ArrayTuple = std::pair<Address, int>;

inline Array array(const ArrayTuple& t) { return {reinterpret_cast<const void*>(t.first), t.second}; }
inline Output output(const ArrayTuple& t) { return {reinterpret_cast<void*>(t.first), t.second}; }

// Numbers that are read from the first to the last one. They must outlive it.
template <class Number>
class Numbers {
 public:
  Numbers(const Number* first, std::size_t count) : next_(first), end_(first + count) {}

  bool empty() const { return next_ == end_; }

  Number next() { return *take(1); }

  const Number* take(std::size_t count) {
    if (count > static_cast<std::size_t>(end_ - next_)) throw std::invalid_argument("arguments: numbers are missing");
    return std::exchange(next_, next_ + count);
  }

 private:
  const Number *next_, *end_;
};

// An array.array of Python; it stays as it is while this lives.
template <class Number>
class Packed {
 public:
  explicit Packed(const pybind11::buffer& numbers) {
    if (PyObject_GetBuffer(numbers.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw pybind11::error_already_set();
    if (view_.itemsize != sizeof(Number)) {
      PyBuffer_Release(&view_);
      throw std::invalid_argument("arguments: expected numbers of " + std::to_string(sizeof(Number)) + " bytes");
    }
  }
  ~Packed() { PyBuffer_Release(&view_); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  Numbers<Number> numbers() const {
    return {static_cast<const Number*>(view_.buf), static_cast<std::size_t>(view_.len) / sizeof(Number)};
  }

 private:
  Py_buffer view_;
};

// ---- what a call is made of, in the order of the integers ----

inline Array array(Numbers<std::int64_t>& ints) {
  const std::int64_t* const pair = ints.take(2);
  return {reinterpret_cast<const void*>(pair[0]), static_cast<int>(pair[1])};
}

inline Output output(Numbers<std::int64_t>& ints) {
  const std::int64_t* const pair = ints.take(2);
  return {reinterpret_cast<void*>(pair[0]), static_cast<int>(pair[1])};
}

// Elements, number of tensors, the base, the tensors.
inline Tensors tensors(Numbers<std::int64_t>& ints) {
  const auto size = static_cast<std::size_t>(ints.next()), count = static_cast<std::size_t>(ints.next());
  if (count == 0) throw std::invalid_argument("expected at least one tensor");
  Tensors inputs{{}, array(ints), size};
  const std::int64_t* const pairs = ints.take(2 * count);
  inputs.tensors.reserve(count);
  for (std::size_t k = 0; k < count; ++k) {
    inputs.tensors.push_back({reinterpret_cast<const void*>(pairs[2 * k]), static_cast<int>(pairs[2 * k + 1])});
  }
  return inputs;
}

inline Tensors tensors(const Ints& list) {
  Numbers<std::int64_t> ints(list.data(), list.size());
  return tensors(ints);
}

inline void expect(std::size_t count, const Tensors& inputs, const char* name) {
  if (count != inputs.tensors.size()) throw std::invalid_argument(std::string(name) + ": expected one per tensor");
}

// The integers of a rule: those of kernels/keep.py, and three addresses; of a random rule row and stride in place of
// the first two.
inline std::vector<Keep> keep_rules(Numbers<std::int64_t>& ints, std::size_t count) {
  std::vector<Keep> keeps;
  keeps.reserve(count);
  const auto row = [](std::int64_t address) { return reinterpret_cast<const std::int64_t*>(address); };
  const auto words = [](std::int64_t address) { return reinterpret_cast<std::uint32_t*>(address); };
  for (std::size_t k = 0; k < count; ++k) {
    const std::int64_t* const t = ints.take(8);
    Keep keep{t[0], t[1], t[2], t[3], t[4]};
    if (keep.rule == kRuleRandom) {
      keep.row = t[5];
      keep.stride = t[6];
      keep.drawn = words(t[7]);
    } else {
      keep.inside = row(t[5]);
      keep.outside = row(t[6]);
    }
    keeps.push_back(keep);
  }
  return keeps;
}

// One rule per tensor.
inline std::vector<Keep> keep_rules(const Ints& list, const Tensors& inputs) {
  Numbers<std::int64_t> ints(list.data(), list.size());
  std::vector<Keep> keeps = keep_rules(ints, inputs.tensors.size());
  if (!ints.empty()) throw std::invalid_argument("keeps: expected one per tensor");
  return keeps;
}

// ---- jobs ----

// Both rows of numbers of some jobs.
class Arguments {
 public:
  Arguments(const pybind11::buffer& ints, const pybind11::buffer& floats) : ints_(ints), floats_(floats) {}

  std::vector<SumJob> sums() const {
    return jobs<SumJob>([](Numbers<std::int64_t>& ints, Numbers<float>& floats) {
      SumJob job{};
      job.out = output(ints);
      job.inputs = tensors(ints);
      job.found_weights = reinterpret_cast<const float*>(ints.next());
      job.weights = scalars(floats, job.inputs);
      return job;
    });
  }

  std::vector<MergeJob> merges() const {
    return jobs<MergeJob>([](Numbers<std::int64_t>& ints, Numbers<float>& floats) {
      MergeJob job{};
      job.out = output(ints);
      job.inputs = tensors(ints);
      job.keeps = keep_rules(ints, job.inputs.tensors.size());
      job.vote = static_cast<int>(ints.next());
      const std::int64_t divide = ints.next();
      job.divides = divide != kDivideNone;
      job.offset = static_cast<std::uint64_t>(ints.next());
      job.found_factors = reinterpret_cast<const float*>(ints.next());
      job.factors = scalars(floats, job.inputs);
      job.weights = scalars(floats, job.inputs);
      if (divide == kDivideCount) job.weights.assign(job.weights.size(), 1.0f);
      job.scale = floats.next();
      job.divisor = floats.next();
      return job;
    });
  }

 private:
  static std::vector<float> scalars(Numbers<float>& floats, const Tensors& inputs) {
    const float* const first = floats.take(inputs.tensors.size());
    return {first, first + inputs.tensors.size()};
  }

  template <class Job, class Read>
  std::vector<Job> jobs(Read read) const {
    Numbers<std::int64_t> ints = ints_.numbers();
    Numbers<float> floats = floats_.numbers();
    std::vector<Job> found;
    while (!ints.empty()) found.push_back(read(ints, floats));
    if (!floats.empty()) throw std::invalid_argument("arguments: more scalars than jobs take");
    return found;
  }

  Packed<std::int64_t> ints_;
  Packed<float> floats_;
};

// Inputs; then per tensor the number of ranks, and the ranks.
inline std::vector<SelectJob> select_jobs(const pybind11::buffer& numbers) {
  const Packed<std::int64_t> packed(numbers);
  Numbers<std::int64_t> ints = packed.numbers();
  std::vector<SelectJob> jobs;
  while (!ints.empty()) {
    SelectJob job{tensors(ints), {}};
    const auto size = static_cast<std::int64_t>(job.inputs.size);
    for (std::size_t k = 0; k < job.inputs.tensors.size(); ++k) {
      const auto count = static_cast<std::size_t>(ints.next());
      const std::int64_t* const ranks = ints.take(count);
      for (std::size_t i = 0; i < count; ++i) {
        if (ranks[i] <= 0 || ranks[i] >= size) throw std::invalid_argument("ranks: expected 0 < rank < size");
      }
      job.ranks.emplace_back(ranks, ranks + count);
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

}  // namespace fastmerge
