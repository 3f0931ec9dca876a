// The pool of worker threads.
#pragma once

#include <cstddef>
#include <functional>

namespace fastmerge::cpu {

// Calls task(0) .. task(count - 1), each once, in any order, on up to `threads` threads of which the caller is one, and
// returns when all are done. The first exception of a task is thrown again here; the tasks not yet begun are then
// skipped. May be called from several threads at a time, but not from a task.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& task);

// Cuts [0, size) into ranges of `grain` (the last may be shorter) and calls task(begin, end) for each, on as many
// threads as are set, or on one where the work is too small to share.
void parallel_ranges(std::size_t size, std::size_t grain, std::size_t least,
                     const std::function<void(std::size_t, std::size_t)>& task);

// Threads of a call; at first the processors that this process may use.
int threads();
void set_threads(int count);

}  // namespace fastmerge::cpu
