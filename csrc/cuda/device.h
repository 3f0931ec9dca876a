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

// Keeps a number in a register, where the compiler would rather make it anew in every turn of a loop.
__device__ inline unsigned pinned(unsigned number) {
  asm("" : "+r"(number));
  return number;
}

// Sets a bit where a > b: a predicated instruction, where the compiler would select a word and add it.
__device__ inline void set_where_above(unsigned& bits, unsigned a, unsigned b, unsigned bit) {
#if defined(__CUDA_ARCH__)
  asm("{.reg .pred above; setp.gt.u32 above, %1, %2; @above or.b32 %0, %0, %3;}"
      : "+r"(bits)
      : "r"(a), "r"(b), "r"(bit));
#else
  if (a > b) bits |= bit;
#endif
}

// Throws std::runtime_error naming what failed, unless the status is success.
void check(cudaError_t status, const std::string& what);

// Asked once per device.
int multiprocessors(int device);

// Bytes of shared memory: the most that a block can ask for, and those of all blocks of a multiprocessor.
std::size_t shared_of_block(int device);
std::size_t shared_of_multiprocessor(int device);

// Blocks whose threads take one unit of work each.
inline unsigned blocks_of(std::size_t units, int threads) {
  return static_cast<unsigned>((units + threads - 1) / threads);
}

// Calls f with an integral constant of `value`, which lies in 0 .. kEnd - 1.
template <int kEnd, class Function>
void with_constant(int value, Function f) {
  if constexpr (kEnd > 0) {
    if (value == kEnd - 1) return f(std::integral_constant<int, kEnd - 1>{});
    with_constant<kEnd - 1>(value, f);
  }
}

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
