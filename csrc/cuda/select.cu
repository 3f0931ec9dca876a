// Exact k-th magnitude of whole tensors, in about one reading of them.
//
// A sample gives a bracket of magnitudes that holds rank k but for bad luck. One pass over all boundaries of a job
// counts what lies above the bracket and what equals either of its ends, and gathers the values in between, which are
// about 4 % of a tensor at most, however often its values repeat: between two ranks of a sample lie only so many of it.
// Digits of the gathered values give the threshold. Where the boundary splits elements of equal magnitude, the counts
// per chunk lead to the one chunk that is read again. Tensors no larger than the sample are selected by one block.
//
// Where a sample misled, the result says so (Status) and the caller falls back to histograms. Nothing here waits.
#include <algorithm>
#include <cmath>

#include "select.h"

namespace fastmerge::cuda {
namespace {

std::string describe(std::size_t items) { return "selection of " + std::to_string(items) + " boundaries"; }

// Hands out parts of the workspace, each aligned to 16 bytes; without a workspace it only counts.
class Parts {
 public:
  explicit Parts(void* workspace) : workspace_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(std::size_t count) {
    T* const part = workspace_ ? reinterpret_cast<T*>(workspace_ + bytes_) : nullptr;
    bytes_ += (count * sizeof(T) + 15) / 16 * 16;
    return part;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  char* workspace_;
  std::size_t bytes_ = 0;
};

// The items of a job, in the order of its tensors and ranks. Their states are the next ones from `state` on.
std::vector<Item> items_of(const SelectJob& job, const SelectSettings& settings, State*& state, Parts& parts,
                           Found*& found) {
  std::vector<Item> items;
  const std::uint64_t size = job.inputs.size;
  for (int k = 0; k < job.inputs.count(); ++k) {
    for (const std::size_t rank : job.ranks[k]) {
      Item item{};
      item.tensor = job.inputs.tensors[k];
      item.base = job.inputs.base;
      item.size = size;
      item.rank = rank;
      if (size > kSample) {
        const double share = static_cast<double>(rank) / static_cast<double>(size), middle = kSample * share;
        const double margin = settings.deviations * std::sqrt(middle * (1 - share)) + kSampleRun;
        item.sample_high = static_cast<int>(std::max(0.0, std::floor(middle - margin)));
        item.sample_low = static_cast<int>(std::ceil(middle + margin)) + 1;
        const double between = std::min(1.0, (2 * margin + 2) / kSample) * static_cast<double>(size);
        item.capacity = static_cast<std::uint64_t>(settings.spare * (between / kPools + kWarpTile));
        item.state = state++;
        item.records = parts.take<Record>((size + kWarpTile - 1) / kWarpTile);
        item.gathered = parts.take<unsigned>(item.capacity * kPools);
      }
      item.found = found++;
      items.push_back(item);
    }
  }
  return items;
}

std::size_t count_large(const std::vector<const SelectJob*>& jobs) {
  std::size_t count = 0;
  for (const SelectJob* job : jobs) {
    if (job->inputs.size <= kSample) continue;
    for (const auto& ranks : job->ranks) count += ranks.size();
  }
  return count;
}

std::size_t workspace_of(const SelectJob& job, const SelectSettings& settings) {
  if (job.inputs.size <= kSample) return 0;
  Parts parts(nullptr);
  State* state = parts.take<State>(count_large({&job}));
  Found* found = nullptr;
  items_of(job, settings, state, parts, found);
  return parts.bytes();
}

// Calls run with jobs that share the workspace, and the bytes that they take of it: at most settings.together, or one
// job takes more.
template <class Run>
void in_turns(const std::vector<SelectJob>& jobs, const SelectSettings& settings, Run run) {
  std::vector<const SelectJob*> together;
  std::size_t bytes = 0;
  for (const SelectJob& job : jobs) {
    const std::size_t more = workspace_of(job, settings);
    if (!together.empty() && bytes + more > settings.together) {
      run(together, bytes);
      together.clear();
      bytes = 0;
    }
    together.push_back(&job);
    bytes += more;
  }
  if (!together.empty()) run(together, bytes);
}

// Calls run with as many items at a time as a kernel takes.
template <class Run>
void in_tables(const std::vector<Item>& items, Run run) {
  Items table{};
  for (std::size_t first = 0; first < items.size(); first += kItems) {
    table.count = static_cast<int>(std::min<std::size_t>(kItems, items.size() - first));
    std::copy_n(items.begin() + static_cast<std::ptrdiff_t>(first), table.count, table.items);
    run(table);
  }
}

// Returns where the results of the next jobs go.
Found* select_together(Found* found, void* workspace, const std::vector<const SelectJob*>& jobs,
                       const SelectSettings& settings, const Stream& stream) {
  Parts parts(workspace);
  const std::size_t large = count_large(jobs);
  State* state = parts.take<State>(large);
  if (large) {
    const OnDevice current(stream.device);
    check(cudaMemsetAsync(state, 0, large * sizeof(State), static_cast<cudaStream_t>(stream.handle)), describe(large));
  }
  std::vector<Item> all, bracketed;
  std::vector<std::vector<Item>> passes;
  for (const SelectJob* job : jobs) {
    std::vector<Item> items = items_of(*job, settings, state, parts, found);
    all.insert(all.end(), items.begin(), items.end());
    if (job->inputs.size <= kSample) continue;
    bracketed.insert(bracketed.end(), items.begin(), items.end());
    passes.push_back(std::move(items));
  }
  const std::string what = describe(all.size());
  in_tables(all, [&](const Items& table) { launch_search(table, what, stream); });
  for (const std::vector<Item>& items : passes) {
    in_tables(items, [&](const Items& table) { launch_collect(table, what, stream); });
  }
  in_tables(bracketed, [&](const Items& table) { launch_finish(table, what, stream); });
  return found;
}

}  // namespace

std::size_t select_workspace(const std::vector<SelectJob>& jobs, const SelectSettings& settings) {
  std::size_t most = 0;
  in_turns(jobs, settings, [&](const auto&, std::size_t bytes) { most = std::max(most, bytes); });
  return most;
}

void select(std::int64_t* results, void* workspace, const std::vector<SelectJob>& jobs, const SelectSettings& settings,
            const Stream& stream) {
  Found* found = reinterpret_cast<Found*>(results);
  in_turns(jobs, settings, [&](const std::vector<const SelectJob*>& together, std::size_t) {
    found = select_together(found, workspace, together, settings, stream);
  });
}

}  // namespace fastmerge::cuda
