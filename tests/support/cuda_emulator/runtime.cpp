// The runtime functions of the stand-in cuda_runtime.h: a pretended Hopper GPU.
#include <map>
#include <stdexcept>

#include "cuda_runtime.h"
#include "emulator.h"

namespace {

thread_local std::string last_error;
bool kernels_run = true;
int driver = 13000, capability = 90;
std::size_t shared = emulator::kSharedBytes;

std::map<const void*, std::size_t>& allowed_shared() {
  static std::map<const void*, std::size_t> bytes;
  return bytes;
}

}  // namespace

void fastmerge_emulated_allow_shared(const void* kernel, std::size_t bytes) { allowed_shared()[kernel] = bytes; }

cudaError_t fastmerge_emulated_launch(const cudaLaunchConfig_t& config, const void* kernel,
                                      const std::function<void()>& body) {
  const auto found = allowed_shared().find(kernel);
  const std::size_t allowed = found == allowed_shared().end() ? 48 << 10 : found->second;
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !threads || threads > 1024 || grid.x > 0x7FFFFFFFu || grid.y > 65535 ||
      config.dynamicSmemBytes > allowed || allowed > shared) {
    return cudaErrorInvalidConfiguration;
  }
  if (!kernels_run) return cudaSuccess;
  try {
    emulator::run(grid, block, config.dynamicSmemBytes, body);
  } catch (const std::exception& error) {
    last_error = error.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void fastmerge_emulated_kernels(int run) { kernels_run = run != 0; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? last_error.c_str() : error ? "invalid argument" : "no error";
}

void fastmerge_emulated_driver(int version) { driver = version; }
void fastmerge_emulated_capability(int number) { capability = number; }
void fastmerge_emulated_shared(std::size_t bytes) { shared = bytes; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = driver, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidConfiguration; }

// Three multiprocessors, so that blocks loop over tensors of a test's size.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int bytes = static_cast<int>(shared);
  *value = attribute == cudaDevAttrMultiProcessorCount                ? 3
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin     ? bytes
           : attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? bytes + 1024
           : attribute == cudaDevAttrComputeCapabilityMajor           ? capability / 10
                                                                      : capability % 10;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
