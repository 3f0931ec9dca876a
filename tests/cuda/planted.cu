// Kernels for the tests of the emulator. Each is at fault unless it is told to be right.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

namespace {

constexpr unsigned kThreads = 64;

// A barrier is missing: every thread reads what another one wrote.
__global__ void reverse(unsigned* out, bool right) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  if (right) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// A warp is taken to run in step: a lane may write the next value before all have read the last.
__global__ void in_step(unsigned* out, bool right) {
  __shared__ unsigned value[kThreads / 32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned sum = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if (lane == i) value[warp] = i;
    __syncwarp();
    sum += value[warp];
    if (right) __syncwarp();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// A fence is missing: the last block reads what the others wrote.
__global__ void last_block(unsigned* out, bool right) {
  if (threadIdx.x != 0) return;
  out[1 + blockIdx.x] = blockIdx.x;
  if (right) __threadfence();
  if (atomicAdd(&out[0], 1u) != gridDim.x - 1) return;
  __threadfence();
  const volatile unsigned* const written = out;
  unsigned sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += written[1 + i];
  out[0] = sum;
}

// A thread waits for its copy after the barrier: others may read before it has come.
__global__ void copied(unsigned* out, bool right) {
  __shared__ uint4 values[kThreads];
  uint4* const from = reinterpret_cast<uint4*>(out + 4);
  __pipeline_memcpy_async(&values[threadIdx.x], &from[threadIdx.x % 4], sizeof(uint4));
  __pipeline_commit();
  if (right) __pipeline_wait_prior(0);
  __syncthreads();
  if (!right) __pipeline_wait_prior(0);
  if (blockIdx.x == 0) out[128 + threadIdx.x] = values[kThreads - 1 - threadIdx.x].x;
}

// Not at fault: the order in which blocks and threads begin.
__global__ void begin(unsigned* out, bool) { out[1 + atomicAdd(&out[0], 1u)] = blockIdx.x * kThreads + threadIdx.x; }

}  // namespace

// Runs three blocks of a kernel. Returns what went wrong.
extern "C" __attribute__((visibility("default"))) const char* run_planted(int which, bool right, unsigned* out) {
  void (*const kernels[])(unsigned*, bool) = {reverse, in_step, last_block, copied, begin};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(3);
  config.blockDim = dim3(kThreads);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernels[which], out, right));
}
