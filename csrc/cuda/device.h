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

// Settings of one GPU family, from its compute capability on. Not yet measured on a GPU.
struct Family {
  int capability;       // the lowest that they hold for, as 90
  int threads;          // per block of an element-wise kernel
  int blocks;           // per multiprocessor, for kernels whose blocks loop over the tensor
  const char* why;
};

const Family& family(int device);
int multiprocessors(int device);

// 16-byte loads of one tensor that a thread of an element-wise kernel has in flight. Bandwidth times latency asks for
// 11 KB per multiprocessor at 2 TB/s and 0.6 us, 18 to 25 KB at 3.4 to 4.8 TB/s and 0.7 us, 43 KB at 8 TB/s and 0.8 us.
constexpr int vectors_in_flight(int capability) { return capability >= 1000 ? 4 : 2; }
#if defined(__CUDA_ARCH__)
constexpr int kInFlight = vectors_in_flight(__CUDA_ARCH__);
#else
constexpr int kInFlight = vectors_in_flight(900);
#endif

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
void launch(const std::string& what, const Place& place, void (*kernel)(Expected...), const Grid& grid,
            Given&&... arguments) {
  const OnDevice current(place.device);
  // More than 48 KB must be asked for.
  if (grid.shared > (48u << 10)) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)), what);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(place.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...), what);
}

}  // namespace fastmerge::cuda
