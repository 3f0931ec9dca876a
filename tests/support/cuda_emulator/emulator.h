// What the files of the emulator know of each other.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

// Of a block, at most.
constexpr std::size_t kSharedBytes = 227 << 10;

// Whether a kernel runs, and of the thread that runs: its number in the block, and what lies on its stack.
bool in_kernel();
unsigned thread();
bool on_stack(const void* address);
// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

}  // namespace emulator

// What orders accesses to memory, as it happens: races.cpp.
namespace races {

void begin_launch();
void begin_block(unsigned warps);
void barrier();
// An exchange of the lanes of a mask is complete.
void meeting(unsigned warp, unsigned mask);
void fence();

}  // namespace races

// Lets threads and blocks run in a random order from now on; 0 for the order of their numbers.
extern "C" __attribute__((visibility("default"))) void fastmerge_emulated_order(unsigned seed);

// What version of CUDA the driver pretends to offer, as 13000.
extern "C" __attribute__((visibility("default"))) void fastmerge_emulated_driver(int version);

// The compute capability of the GPU, as 90.
extern "C" __attribute__((visibility("default"))) void fastmerge_emulated_capability(int number);

// The bytes of shared memory that a block can ask for, at most kSharedBytes.
extern "C" __attribute__((visibility("default"))) void fastmerge_emulated_shared(std::size_t bytes);

// Whether kernels run; else their launches are checked, and do nothing: for timing the host.
extern "C" __attribute__((visibility("default"))) void fastmerge_emulated_kernels(int run);
