// Exact k-th magnitude without a sort.
//
// A sample gives a bracket of magnitudes that surely holds rank k. One pass counts what lies above the bracket and
// collects what lies inside; the answer is found among the few collected. Deltas of bfloat16 weights often repeat one
// magnitude, so the two most frequent values of the bracket ("atoms") are only counted. Should the bracket miss the
// rank or hold too much (an adversarial input), two histograms of the magnitude bits find it instead.
//
// Extra memory per boundary: 4 bytes for each of size / 16 + 524288 elements, and 32 bytes per 16384 elements.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <memory>

#include "../fastmerge_math.h"
#include "operations.h"
#include "threads.h"

namespace fastmerge::cpu {
namespace {

constexpr std::size_t kSampleRun = 32;  // neighbours that are sampled together: a cache line of bfloat16
constexpr std::size_t kSmall = 65536;   // below this everything is collected
constexpr std::size_t kSpare =
    524288;  // room for repeated values that are no atoms, which small samples bracket more of
constexpr std::size_t kLeast = std::size_t{1} << 19;

// What one chunk contributed, and where it put what it collected.
struct ChunkRecord {
  std::size_t first;
  BracketCounts counts;
};

// One boundary that is looked for.
struct Search {
  Search(const Tensors& inputs, int k, std::size_t rank)
      : tensor(inputs.tensors[k]), base(inputs.base), size(inputs.size), rank(rank) {}

  Array tensor, base;
  std::size_t size, rank;

  Bracket bracket{};
  std::size_t capacity = 0;
  std::unique_ptr<std::uint32_t[]> collected;
  std::atomic<std::size_t> used{0};
  std::vector<ChunkRecord> chunks;
  Boundary boundary{};

  void take_sample();
  void collect(std::size_t chunk, std::uint32_t* scratch);
  bool finish();
  void fall_back();

 private:
  bool find();
  std::size_t equal_in_chunk(std::size_t chunk, std::int32_t threshold) const;
  void cut(std::int32_t threshold, std::size_t equal, std::size_t keep, const std::vector<std::size_t>& per_chunk);
  std::size_t nth_equal(std::size_t chunk, std::int32_t threshold, std::size_t nth) const;
};

// The most frequent values of a sorted range, if they are frequent enough to be worth a comparison per element.
void find_atoms(Bracket& bracket, const std::vector<std::int32_t>& inside, std::size_t sample) {
  std::size_t best[2] = {};
  bracket.atoms[0] = bracket.atoms[1] = kNoAtom;
  for (auto at = inside.begin(); at != inside.end();) {
    const auto stop = std::upper_bound(at, inside.end(), *at);
    const auto count = static_cast<std::size_t>(stop - at);
    if (count * 512 > sample && count > best[1] && *at < kNanMagnitude) {
      best[1] = count;
      bracket.atoms[1] = *at;
      if (best[1] > best[0]) {
        std::swap(best[0], best[1]);
        std::swap(bracket.atoms[0], bracket.atoms[1]);
      }
    }
    at = stop;
  }
}

void Search::take_sample() {
  chunks.resize((size + kGrid - 1) / kGrid);
  if (size <= kSmall) {
    bracket = {0, kLargestBits, {kNoAtom, kNoAtom}};
    capacity = size;
  } else {
    // The cost of sorting the sample and that of what the bracket collects balance at about size ** (2 / 3).
    const double wanted = std::pow(static_cast<double>(size), 2.0 / 3.0);
    const std::size_t runs = std::max<std::size_t>(256, static_cast<std::size_t>(wanted) / kSampleRun);
    const std::size_t stride = size / runs;
    std::vector<std::int32_t> sample(runs * kSampleRun);
    std::uint64_t random = 0x9E3779B97F4A7C15u;
    for (std::size_t run = 0; run < runs; ++run) {
      // A jittered grid, so that no period of the data can fool it.
      random = random * 6364136223846793005u + 1442695040888963407u;
      const std::size_t spread = stride > kSampleRun ? stride - kSampleRun : 1;
      const std::size_t begin = std::min(size - kSampleRun, run * stride + (random >> 33) % spread);
      float run_deltas[kSampleRun];
      loops().deltas(run_deltas, tensor, base, begin, begin + kSampleRun);
      for (std::size_t i = 0; i < kSampleRun; ++i) {
        sample[run * kSampleRun + i] = canonical_bits(magnitude_bits(run_deltas[i]));
      }
    }
    const auto count = static_cast<double>(sample.size());
    const double share = static_cast<double>(rank) / static_cast<double>(size);
    // Six standard deviations; neighbours are not independent, hence no fewer.
    const double margin = 6.0 * std::sqrt(count * share * (1 - share)) + 32;
    const double middle = count * (1 - share);  // ascending order
    const auto first = static_cast<std::ptrdiff_t>(std::max(0.0, middle - margin));
    const auto last = static_cast<std::ptrdiff_t>(std::min(count - 1, middle + margin));
    std::nth_element(sample.begin(), sample.begin() + first, sample.end());
    bracket.low = middle - margin < 0 ? 0 : sample[first];
    std::nth_element(sample.begin() + first, sample.begin() + last, sample.end());
    bracket.high = middle + margin > count - 1 ? kLargestBits : sample[last];
    // NaNs are collected with their payloads.
    if (bracket.high >= kNanMagnitude) bracket.high = kLargestBits;
    std::vector<std::int32_t> inside;
    for (const std::int32_t bits : sample) {
      if (bits >= bracket.low && bits <= bracket.high) inside.push_back(bits);
    }
    std::sort(inside.begin(), inside.end());
    find_atoms(bracket, inside, sample.size());
    capacity = size / 16 + kSpare;
  }
  collected.reset(new std::uint32_t[capacity]);
}

void Search::collect(std::size_t chunk, std::uint32_t* scratch) {
  if (used.load(std::memory_order_relaxed) > capacity) return;  // falls back anyway
  const std::size_t begin = chunk * kGrid;
  const BracketCounts counts = loops().collect(scratch, tensor, base, bracket, begin, std::min(size, begin + kGrid));
  const std::size_t first = used.fetch_add(counts.collected);
  chunks[chunk] = {first, counts};
  if (first + counts.collected > capacity) return;
  for (std::size_t i = 0; i < counts.collected; ++i) {
    collected[first + i] = std::min(scratch[i], static_cast<std::uint32_t>(kNanMagnitude));
  }
}

// Finds the boundary among what was collected, and lets go of that; false when it is not there.
bool Search::finish() {
  const bool found = find();
  collected.reset();
  return found;
}

bool Search::find() {
  if (used > capacity) return false;
  std::size_t above = 0, atoms[2] = {};
  for (const ChunkRecord& chunk : chunks) {
    above += chunk.counts.above;
    atoms[0] += chunk.counts.atoms[0];
    atoms[1] += chunk.counts.atoms[1];
  }
  if (rank <= above || rank > above + atoms[0] + atoms[1] + used) return false;
  // Narrow the bracket by a histogram of the collected values until few are left.
  std::size_t inside_rank = rank - above;  // from the largest, 1-based
  const std::size_t bin_count = std::min<std::size_t>(4096, std::max<std::size_t>(16, used));
  const auto low = static_cast<std::uint32_t>(bracket.low), span = static_cast<std::uint32_t>(bracket.high) - low;
  int shift = 0;
  while ((span >> shift) >= bin_count) ++shift;
  std::vector<std::size_t> bins(bin_count);
  for (std::size_t i = 0; i < used; ++i) ++bins[(collected[i] - low) >> shift];
  for (int a = 0; a < 2; ++a) {
    if (atoms[a]) bins[(static_cast<std::uint32_t>(bracket.atoms[a]) - low) >> shift] += atoms[a];
  }
  std::size_t bin = bin_count - 1;
  while (inside_rank > bins[bin]) inside_rank -= bins[bin--];
  // Count the values of that bin, each once, from the largest.
  std::vector<std::uint32_t> values;
  for (std::size_t i = 0; i < used; ++i) {
    if ((collected[i] - low) >> shift == bin) values.push_back(collected[i]);
  }
  std::sort(values.begin(), values.end(), std::greater<>());
  std::size_t at = 0;
  for (;;) {
    // The next largest value: a collected one or an atom of this bin.
    std::int64_t value = at < values.size() ? static_cast<std::int64_t>(values[at]) : -1;
    for (int a = 0; a < 2; ++a) {
      const std::int64_t atom = bracket.atoms[a];
      if (!atoms[a] || (static_cast<std::uint32_t>(atom) - low) >> shift != bin) continue;
      if (atom > value) value = atom;
    }
    std::size_t equal = 0;
    for (; at < values.size() && values[at] == value; ++at) ++equal;
    for (int a = 0; a < 2; ++a) {
      if (atoms[a] && bracket.atoms[a] == value) equal += std::exchange(atoms[a], 0);
    }
    if (inside_rank <= equal) {
      const auto threshold = static_cast<std::int32_t>(value);
      std::vector<std::size_t> per_chunk;
      if (inside_rank < equal) {
        for (std::size_t chunk = 0; chunk < chunks.size(); ++chunk)
          per_chunk.push_back(equal_in_chunk(chunk, threshold));
      }
      cut(threshold, equal, inside_rank, per_chunk);
      return true;
    }
    inside_rank -= equal;
  }
}

std::size_t Search::equal_in_chunk(std::size_t chunk, std::int32_t threshold) const {
  const auto& [first, counts] = chunks[chunk];
  for (int a = 0; a < 2; ++a) {
    if (bracket.atoms[a] == threshold) return counts.atoms[a];
  }
  const std::uint32_t* begin = &collected[first];
  return std::count(begin, begin + counts.collected, static_cast<std::uint32_t>(threshold));
}

// The boundary that keeps the first `keep` of the `equal` elements at the threshold.
void Search::cut(std::int32_t threshold, std::size_t equal, std::size_t keep,
                 const std::vector<std::size_t>& per_chunk) {
  boundary = {threshold, INT64_MAX};
  if (keep == equal) return;
  std::size_t chunk = 0;
  while (keep > per_chunk[chunk]) keep -= per_chunk[chunk++];
  boundary.break_index = static_cast<std::int64_t>(nth_equal(chunk, threshold, keep)) + 1;
}

std::size_t Search::nth_equal(std::size_t chunk, std::int32_t threshold, std::size_t nth) const {
  const std::size_t begin = chunk * kGrid, end = std::min(size, begin + kGrid);
  std::vector<float> values(kGrid + kSlack);
  loops().deltas(values.data(), tensor, base, begin, end);
  std::size_t i = 0;
  for (;; ++i) {
    if (canonical_bits(magnitude_bits(values[i])) == threshold && --nth == 0) return begin + i;
  }
}

// Returns the bin that holds an element of that rank (from the largest bin), and reduces the rank to that inside the
// bin.
std::size_t descend(const std::vector<std::int64_t>& counts, std::size_t& rank) {
  std::size_t bin = counts.size() - 1;
  while (rank > static_cast<std::size_t>(counts[bin])) rank -= counts[bin--];
  return bin;
}

std::atomic<std::size_t> fallbacks{0};

void Search::fall_back() {
  ++fallbacks;
  const Tensors inputs{{tensor}, base, size};
  std::size_t remaining = rank;
  std::vector<std::int64_t> counts(std::size_t{1} << 15);
  magnitude_histogram(counts.data(), inputs, 0, {});
  const std::size_t prefix = descend(counts, remaining);
  counts.assign(std::size_t{1} << 16, 0);
  magnitude_histogram(counts.data(), inputs, 1, {static_cast<std::int64_t>(prefix)});
  const std::size_t low = descend(counts, remaining);
  const auto threshold = static_cast<std::int32_t>(prefix << 16 | low);
  std::vector<std::int64_t> equal(chunks.size());
  if (remaining < static_cast<std::size_t>(counts[low])) equal_counts(equal.data(), inputs, {threshold});
  cut(threshold, counts[low], remaining, {equal.begin(), equal.end()});
}

// The searches of one job.
class Selection {
 public:
  explicit Selection(const SelectJob& job) : size_(job.inputs.size) {
    for (int k = 0; k < job.inputs.count(); ++k) {
      for (const std::size_t rank : job.ranks[k]) searches_.push_back(std::make_unique<Search>(job.inputs, k, rank));
    }
    found_.resize(searches_.size());
  }

  std::size_t work() const { return size_ * searches_.size(); }

  void run(int workers) {
    parallel_for(searches_.size(), workers, [&](std::size_t i) { searches_[i]->take_sample(); });
    // Every chunk of the base is read from memory once, for all boundaries.
    parallel_for((size_ + kGrid - 1) / kGrid, workers, [&](std::size_t chunk) {
      thread_local std::vector<std::uint32_t> scratch(kGrid + kSlack);
      for (auto& search : searches_) search->collect(chunk, scratch.data());
    });
    parallel_for(searches_.size(), workers, [&](std::size_t i) { found_[i] = searches_[i]->finish(); });
  }

  // Not from a task: a sample that misled needs threads of its own.
  void append_to(std::vector<Boundary>& result) {
    for (std::size_t i = 0; i < searches_.size(); ++i) {
      if (!found_[i]) searches_[i]->fall_back();
      result.push_back(searches_[i]->boundary);
    }
  }

 private:
  std::size_t size_;
  std::vector<std::unique_ptr<Search>> searches_;
  std::vector<char> found_;
};

}  // namespace

std::size_t select_fallbacks() { return fallbacks; }

std::vector<Boundary> select(const std::vector<SelectJob>& jobs) {
  std::deque<Selection> selections;
  std::vector<Selection*> small;
  std::size_t work = 0;
  for (const SelectJob& job : jobs) {
    Selection& selection = selections.emplace_back(job);
    if (selection.work() >= kLeast) continue;
    small.push_back(&selection);
    work += selection.work();
  }
  parallel_for(small.size(), work < kLeast ? 1 : threads(), [&](std::size_t i) { small[i]->run(1); });
  std::vector<Boundary> result;
  for (Selection& selection : selections) {
    if (selection.work() >= kLeast) selection.run(threads());
    selection.append_to(result);
  }
  return result;
}

}  // namespace fastmerge::cpu
