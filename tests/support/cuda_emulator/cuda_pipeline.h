// Stands in for the CUDA toolkit's header of this name. A copy arrives when its thread waits for it: until then what it
// writes to is poisoned, and counts as written, since on a GPU it may arrive at any time.
#pragma once

#include "cuda_runtime.h"

namespace emulator {

// Of the thread that runs: begins a copy, closes a batch of copies, and calls arrive(to, from) for all copies of all
// batches but the last `prior` ones.
void begin_copy(void* to, const void* from, std::size_t bytes);
void close_batch();
void arrive(std::size_t prior, void (*copy)(void* to, const void* from, std::size_t bytes));

}  // namespace emulator

// Word by word, so that accesses are checked where they are compiled to be.
inline void fastmerge_emulated_copy(void* to, const void* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes / sizeof(unsigned); ++i) {
    static_cast<unsigned*>(to)[i] = from ? static_cast<const unsigned*>(from)[i] : 0xFFFFFFFFu;
  }
}

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
  fastmerge_emulated_copy(to, nullptr, bytes);
  emulator::begin_copy(to, from, bytes);
}
inline void __pipeline_commit() { emulator::close_batch(); }
inline void __pipeline_wait_prior(std::size_t prior) { emulator::arrive(prior, fastmerge_emulated_copy); }
