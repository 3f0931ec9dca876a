#include "operations.h"

#include <algorithm>
#include <mutex>

#include "threads.h"

namespace fastmerge::cpu {
namespace {

// Elements of a task: long enough that taking it costs nothing, short enough to balance threads.
constexpr std::size_t kGrain = 4 * kChunk;
// Elements (times tensors) below which waking a thread costs more than it saves.
constexpr std::size_t kLeast = std::size_t{1} << 20;
// Elements of a task that fills a private histogram, which must be cleared before and added after.
constexpr std::size_t kHistogramGrain = std::size_t{1} << 24;

std::size_t least_elements(const Group& group) { return kLeast / (group.tensors.size() + 1); }

}  // namespace

void weighted_sum(Output out, const Group& group, const std::vector<float>& weights) {
  parallel_ranges(group.size, kGrain, least_elements(group), [&](std::size_t begin, std::size_t end) {
    loops().weighted_sum(out, group, weights.data(), begin, end);
  });
}

void sparse_merge(Output out, const Group& group, const Merge& merge) {
  parallel_ranges(group.size, kGrain, least_elements(group),
                  [&](std::size_t begin, std::size_t end) { loops().sparse_merge(out, group, merge, begin, end); });
}

void gram(double* partials, const Group& group) {
  parallel_ranges(group.size, kGrain, least_elements(group), [&](std::size_t begin, std::size_t end) {
    loops().gram(partials, group, begin / kChunk, (end + kChunk - 1) / kChunk);
  });
}

void norms(double* partials, const Group& group, const std::vector<Keep>& keeps, int power, std::uint64_t offset) {
  parallel_ranges(group.size, kGrain, least_elements(group), [&](std::size_t begin, std::size_t end) {
    loops().norms(partials, group, keeps, power, offset, begin / kChunk, (end + kChunk - 1) / kChunk);
  });
}

void magnitude_histogram(std::int64_t* counts, const Group& group, int level,
                         const std::vector<std::int64_t>& prefixes) {
  const std::size_t bins = level == 0 ? std::size_t{1} << 15 : std::size_t{1} << 16;
  std::mutex mutex;
  // Few long tasks: each clears and adds a table of its own.
  const std::size_t grain = std::min(kHistogramGrain, std::max(kGrain, group.size / 8));
  parallel_ranges(group.size, grain, least_elements(group), [&](std::size_t begin, std::size_t end) {
    std::vector<std::uint32_t> table(bins);
    for (int k = 0; k < group.count(); ++k) {
      std::fill(table.begin(), table.end(), 0);
      loops().histogram(table.data(), group.tensors[k], group.base, level == 0 ? -1 : prefixes[k], begin, end);
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t bin = 0; bin < bins; ++bin) counts[k * bins + bin] += table[bin];
    }
  });
}

void equal_counts(std::int64_t* counts, const Group& group, const std::vector<std::int64_t>& thresholds) {
  const std::size_t chunks = (group.size + kChunk - 1) / kChunk;
  parallel_ranges(group.size, kChunk, least_elements(group), [&](std::size_t begin, std::size_t end) {
    for (int k = 0; k < group.count(); ++k) {
      const std::int64_t threshold = thresholds[k];
      const bool possible = threshold >= 0 && threshold <= 0x7FFFFFFF;
      counts[k * chunks + begin / kChunk] =
          possible ? loops().count_equal(group.tensors[k], group.base, static_cast<std::int32_t>(threshold), begin, end)
                   : 0;
    }
  });
}

void rank_mask(std::uint32_t* words, const RankRows& rows, std::size_t outer) {
  const bool contiguous = rows.inner == 1;
  const std::size_t blocks = contiguous ? 1 : (rows.inner + kRankColumns - 1) / kRankColumns;
  const std::size_t elements = rows.length * (contiguous ? 1 : std::min(rows.inner, kRankColumns));
  std::fill_n(words, (outer * rows.length * rows.inner + 31) / 32, 0);
  const std::size_t grain = std::max<std::size_t>(1, kGrain / elements);
  parallel_ranges(outer * blocks, grain, kGrain / elements,
                  [&](std::size_t begin, std::size_t end) { loops().rank_mask(words, rows, begin, end); });
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
