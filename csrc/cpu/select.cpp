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

  Bracket bracket{0, kLargestBits, {kNoAtom, kNoAtom}};
  std::size_t capacity = 0;
  std::unique_ptr<std::uint32_t[]> collected;
  std::atomic<std::size_t> used{0};
  std::vector<ChunkRecord> chunks;
  Boundary boundary{};

  void take_bracket(const std::vector<std::int32_t>& sample);
  void prepare();
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

// Finds the bracket of a sample: what lies at two places of it in ascending order.
void Search::take_bracket(const std::vector<std::int32_t>& sample) {
  const auto count = static_cast<double>(sample.size());
  const double share = static_cast<double>(rank) / static_cast<double>(size);
  // Six standard deviations; neighbours are not independent, hence no fewer.
  const double margin = 6.0 * std::sqrt(count * share * (1 - share)) + 32;
  const double middle = count * (1 - share);  // ascending order
  auto first = static_cast<std::size_t>(std::max(0.0, middle - margin));
  auto last = static_cast<std::size_t>(std::min(count - 1, middle + margin));
  // Only the bins of these two are looked at.
  std::vector<std::uint32_t> bins(std::size_t{1} << 15);
  for (const std::int32_t bits : sample) ++bins[bits >> 16];
  std::int32_t bin = 0;
  std::size_t before = 0;
  for (; before + bins[bin] <= first; ++bin) before += bins[bin];
  const std::int32_t least = bin;
  first -= before;
  last -= before;
  for (before = 0; before + bins[bin] <= last; ++bin) before += bins[bin];
  // Without branches: they would go either way.
  std::vector<std::int32_t> near(before + bins[bin] + 1);
  std::size_t found = 0;
  for (const std::int32_t bits : sample) {
    near[found] = bits;
    found += bits >> 16 >= least && bits >> 16 <= bin;
  }
  near.pop_back();
  const auto at = [&](std::size_t place) { return near.begin() + static_cast<std::ptrdiff_t>(place); };
  // Deltas of bfloat16 often repeat one magnitude.
  const auto [smallest, largest] = std::minmax_element(near.begin(), near.end());
  const bool same = *smallest == *largest;
  if (!same) std::nth_element(near.begin(), at(first), near.end());
  bracket.low = middle - margin < 0 ? 0 : near[first];
  if (!same) std::nth_element(at(first), at(last), near.end());
  bracket.high = middle + margin > count - 1 ? kLargestBits : near[last];
  // NaNs are collected with their payloads.
  if (bracket.high >= kNanMagnitude) bracket.high = kLargestBits;
  if (bracket.low == bracket.high) {
    bracket.atoms[0] = bracket.low;
    bracket.atoms[1] = kNoAtom;
    return;
  }
  std::vector<std::int32_t> inside;
  for (const std::int32_t bits : near) {
    if (bits >= bracket.low && bits <= bracket.high) inside.push_back(bits);
  }
  std::sort(inside.begin(), inside.end());
  find_atoms(bracket, inside, sample.size());
}

void Search::prepare() {
  chunks.resize((size + kGrid - 1) / kGrid);
  capacity = size <= kSmall ? size : size / 16 + kSpare;
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

// Where samples are taken: whole cache lines on a jittered grid, so that no period of the data can fool it.
std::vector<std::size_t> sampled_runs(std::size_t size) {
  // The cost of looking at the sample and that of what the bracket collects balance at about size ** (2 / 3).
  const double wanted = std::pow(static_cast<double>(size), 2.0 / 3.0);
  std::vector<std::size_t> begins(std::max<std::size_t>(256, static_cast<std::size_t>(wanted) / kSampleRun));
  const std::size_t stride = size / begins.size(), spread = stride > kSampleRun ? stride - kSampleRun : 1;
  std::uint64_t random = 0x9E3779B97F4A7C15u;
  for (std::size_t run = 0; run < begins.size(); ++run) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    begins[run] = (run * stride + (random >> 33) % spread) / kSampleRun * kSampleRun;
  }
  return begins;
}

// Asks for the memory of a run.
void prefetch_run(Array array, std::size_t begin) {
  if (!array.data) return;
  const std::size_t itemsize = array.dtype == kFloat32 ? 4 : 2;
  const char* const first = static_cast<const char*>(array.data) + begin * itemsize;
  for (std::size_t i = 0; i < kSampleRun * itemsize; i += 64) __builtin_prefetch(first + i);
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
    if (size_ > kSmall) take_samples(workers);
    for (auto& search : searches_) search->prepare();
    // Every chunk of the base is read from memory once, for all boundaries. What a thread asks for at the end of a
    // chunk is in the next one: it takes several.
    const std::size_t chunks = (size_ + kGrid - 1) / kGrid;
    const std::size_t together = std::clamp<std::size_t>(chunks / (16 * static_cast<std::size_t>(workers)), 1, 16);
    parallel_for((chunks + together - 1) / together, workers, [&](std::size_t part) {
      thread_local std::vector<std::uint32_t> scratch(kGrid + kSlack);
      const std::size_t end = std::min(chunks, (part + 1) * together);
      for (std::size_t chunk = part * together; chunk < end; ++chunk) {
        for (auto& search : searches_) search->collect(chunk, scratch.data());
      }
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
  // Every part of the samples is read from all tensors together, so that the base is read from memory once.
  void take_samples(int workers) {
    constexpr std::size_t kPart = 128, kAhead = 8;  // runs
    const std::vector<std::size_t> begins = sampled_runs(size_);
    std::vector<std::vector<std::int32_t>> samples(searches_.size());
    for (auto& sample : samples) sample.resize(begins.size() * kSampleRun);
    parallel_for((begins.size() + kPart - 1) / kPart, workers, [&](std::size_t part) {
      const std::size_t last = std::min(begins.size(), (part + 1) * kPart);
      for (std::size_t i = 0; i < searches_.size(); ++i) {
        const Search& search = *searches_[i];
        for (std::size_t run = part * kPart; run < last; ++run) {
          if (run + kAhead < last) {
            prefetch_run(search.tensor, begins[run + kAhead]);
            prefetch_run(search.base, begins[run + kAhead]);
          }
          float deltas[kSampleRun];
          loops().deltas(deltas, search.tensor, search.base, begins[run], begins[run] + kSampleRun);
          for (std::size_t j = 0; j < kSampleRun; ++j) {
            samples[i][run * kSampleRun + j] = canonical_bits(magnitude_bits(deltas[j]));
          }
        }
      }
    });
    parallel_for(searches_.size(), workers, [&](std::size_t i) { searches_[i]->take_bracket(samples[i]); });
  }

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
