// Devices, launch settings, and the one function that launches a kernel.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "operations.h"

extern __shared__ uint4 fastmerge_shared[];

namespace fastmerge::cuda {

// The dynamic shared memory of a block, aligned to 16 bytes.
template <class T>
__device__ inline T* dynamic_shared() {
  return reinterpret_cast<T*>(fastmerge_shared);
}

// Throws std::runtime_error naming what failed, unless the status is success.
void check(cudaError_t status, const std::string& what);

// Settings of one GPU family, from its compute capability on.
struct Family {
  int capability;  // the lowest that they hold for, as 90
  int vectors;     // 16-byte loads of one tensor that a thread of a weighted sum has in flight
  int blocks;      // per multiprocessor, for kernels whose blocks loop over the tensor
  const char* why;
};

// blocks: those of 256 threads that fill a multiprocessor, twice, so that blocks that end early leave no gap.
constexpr Family kFamilies[] = {
    {120, 2, 12, "1536 threads; 1.8 TB/s at 0.6 us keeps 6 KB per multiprocessor in flight"},
    // Four vectors double the registers, so that no more is in flight.
    {100, 2, 16, "2048 threads; 8 TB/s at 0.8 us keeps 43 KB per multiprocessor in flight"},
    {90, 2, 16, "2048 threads; 3.4 to 4.8 TB/s at 0.7 us keeps 18 to 25 KB per multiprocessor in flight"},
    {86, 2, 12, "1536 threads; 1 TB/s at 0.6 us keeps 7 KB per multiprocessor in flight"},
    {0, 2, 16, "2048 threads; 2 TB/s at 0.6 us keeps 11 KB per multiprocessor in flight"},
};

constexpr const Family& family_of(int capability) {
  int i = 0;
  while (capability < kFamilies[i].capability) ++i;
  return kFamilies[i];
}

#if defined(__CUDA_ARCH__)
constexpr int kInFlight = family_of(__CUDA_ARCH__ / 10).vectors;
#else
constexpr int kInFlight = family_of(90).vectors;
#endif

const Family& family(int device);
int multiprocessors(int device);

// Blocks of a kernel whose threads take one unit of work at a time, looping: enough for the work, and no more than fill
// the device.
unsigned blocks_for(std::size_t units, int threads, int device);

// Makes a device current, and the one before it when it ends.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, device_;
};

struct Grid {
  unsigned blocks, threads;
  std::size_t shared = 0;
};

// `what` names the operation and its sizes in the error of a launch that fails.
template <class... Expected, class... Given>
void launch(const std::string& what, const Stream& stream, void (*kernel)(Expected...), const Grid& grid,
            Given&&... arguments) {
  const OnDevice current(stream.device);
  // More than 48 KB must be asked for. Callers hold Python's lock, so nobody asks for less before the launch.
  if (grid.shared > (48u << 10)) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)),
          what);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...), what);
}

}  // namespace fastmerge::cuda
