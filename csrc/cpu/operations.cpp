#include "operations.h"

#include <algorithm>
#include <mutex>

#include "fastmerge_math.h"
#include "threads.h"

namespace fastmerge::cpu {
namespace {

// Elements of a task: long enough that taking it costs nothing, short enough to balance threads.
constexpr std::size_t kGrain = std::size_t{4} * kGrid;
// Elements (times tensors) below which waking a thread costs more than it saves.
constexpr std::size_t kLeast = std::size_t{1} << 20;
// Elements of a task that fills a private histogram, which must be cleared before and added after.
constexpr std::size_t kHistogramGrain = std::size_t{1} << 24;

std::size_t least_elements(const Tensors& inputs) { return kLeast / (inputs.tensors.size() + 1); }

// A task of several jobs: from element `begin` of job `first` up to element `end` of job `last`.
struct Share {
  std::size_t first, last, begin, end;
};

// Calls loop(job, begin, end) for all elements of all jobs: large ones in parts, small ones several to a task.
template <class Job>
void share_out(const std::vector<Job>& jobs, void (*loop)(const Job&, std::size_t, std::size_t)) {
  std::vector<Share> shares;
  std::size_t work = 0, filled = kGrain + 1;  // elements of the last share; at first there is none to add to
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const std::size_t size = jobs[i].inputs.size;
    work += size * (jobs[i].inputs.tensors.size() + 1);
    if (filled + size <= kGrain) {
      shares.back().last = i;
      shares.back().end = size;
      filled += size;
      continue;
    }
    for (std::size_t begin = 0; begin < size; begin += kGrain) {
      filled = std::min(kGrain, size - begin);
      shares.push_back({i, i, begin, begin + filled});
    }
  }
  parallel_for(shares.size(), work < kLeast ? 1 : threads(), [&](std::size_t s) {
    const auto& [first, last, begin, end] = shares[s];
    for (std::size_t i = first; i <= last; ++i) {
      loop(jobs[i], i == first ? begin : 0, i == last ? end : jobs[i].inputs.size);
    }
  });
}

}  // namespace

void weighted_sum(const std::vector<SumJob>& jobs) { share_out(jobs, loops().weighted_sum); }

void sparse_merge(const std::vector<MergeJob>& jobs) { share_out(jobs, loops().sparse_merge); }

void gram(double* partials, const Tensors& inputs) {
  parallel_ranges(inputs.size, kGrain, least_elements(inputs), [&](std::size_t begin, std::size_t end) {
    loops().gram(partials, inputs, begin / kGrid, (end + kGrid - 1) / kGrid);
  });
}

void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset) {
  parallel_ranges(inputs.size, kGrain, least_elements(inputs), [&](std::size_t begin, std::size_t end) {
    loops().norms(partials, inputs, keeps, power, offset, begin / kGrid, (end + kGrid - 1) / kGrid);
  });
}

void magnitude_histogram(std::int64_t* counts, const Tensors& inputs, int level,
                         const std::vector<std::int64_t>& prefixes) {
  const std::size_t bins = level == 0 ? std::size_t{1} << 15 : std::size_t{1} << 16;
  std::mutex mutex;
  // Few long tasks: each clears and adds a table of its own.
  const std::size_t grain = std::min(kHistogramGrain, std::max(kGrain, inputs.size / 8));
  parallel_ranges(inputs.size, grain, least_elements(inputs), [&](std::size_t begin, std::size_t end) {
    std::vector<std::uint32_t> table(bins);
    for (int k = 0; k < inputs.count(); ++k) {
      std::fill(table.begin(), table.end(), 0);
      loops().histogram(table.data(), inputs.tensors[k], inputs.base, level == 0 ? -1 : prefixes[k], begin, end);
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t bin = 0; bin < bins; ++bin) counts[k * bins + bin] += table[bin];
    }
  });
}

void equal_counts(std::int64_t* counts, const Tensors& inputs, const std::vector<std::int64_t>& thresholds) {
  const std::size_t chunks = (inputs.size + kGrid - 1) / kGrid;
  parallel_ranges(inputs.size, kGrid, least_elements(inputs), [&](std::size_t begin, std::size_t end) {
    for (int k = 0; k < inputs.count(); ++k) {
      const std::int64_t threshold = thresholds[k];
      const bool possible = threshold >= 0 && threshold <= 0x7FFFFFFF;
      counts[k * chunks + begin / kGrid] =
          possible
              ? loops().count_equal(inputs.tensors[k], inputs.base, static_cast<std::int32_t>(threshold), begin, end)
              : 0;
    }
  });
}

void rank_mask(RankRows rows, std::size_t outer, std::uint64_t offset) {
  const bool contiguous = rows.inner == 1;
  const std::size_t blocks = contiguous ? 1 : (rows.inner + kRankColumns - 1) / kRankColumns;
  const std::size_t elements = rows.length * (contiguous ? 1 : std::min(rows.inner, kRankColumns));
  // Loops are given the addresses of the whole tensors, and some rows of these.
  const auto whole = [&](Array& array) {
    if (!array.data) return;
    array.data = static_cast<const char*>(array.data) - offset * (array.dtype == kFloat32 ? sizeof(float) : 2);
  };
  whole(rows.base);
  for (RankModel& model : rows.models) {
    std::fill_n(model.words, (offset % 32 + outer * rows.length * rows.inner + 31) / 32, 0);
    model.words -= offset / 32;
    whole(model.tensor);
  }
  const std::size_t first = offset / (rows.length * rows.inner) * blocks;
  const std::size_t grain = std::max<std::size_t>(1, kGrain / elements);
  parallel_ranges(outer * blocks, grain, kGrain / elements,
                  [&](std::size_t begin, std::size_t end) { loops().rank_mask(rows, first + begin, first + end); });
}

void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale) {
  if (rows == 0 || columns == 0) return;
  const std::size_t grain = std::max<std::size_t>(1, kGrain / columns);
  const std::size_t least = kLeast / (columns * rank);
  parallel_ranges(rows, grain, least, [&](std::size_t first, std::size_t last) {
    loops().low_rank(out, weight, up, down, columns, rank, scale, first, last);
  });
}

}  // namespace fastmerge::cpu
