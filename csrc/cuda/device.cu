#include <map>
#include <mutex>

#include "device.h"

namespace fastmerge::cuda {
namespace {

// The oldest that kernels are compiled for, from setup.py.
#ifndef FASTMERGE_LEAST_CAPABILITY
#define FASTMERGE_LEAST_CAPABILITY 80
#endif
constexpr int kLeastCapability = FASTMERGE_LEAST_CAPABILITY;
// The oldest that they can be compiled for.
constexpr int kLeastSupported = 80;
// CUDA 12.4: drivers before it know neither how the kernels are compressed nor, before 12.1, parameters beyond 4 KB.
constexpr int kLeastDriver = 12040;

int attribute(int device, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "CUDA device " + std::to_string(device));
  return value;
}

int read_capability(int device) {
  return 10 * attribute(device, cudaDevAttrComputeCapabilityMajor) +
         attribute(device, cudaDevAttrComputeCapabilityMinor);
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string capability_name(int number) { return std::to_string(number / 10) + "." + std::to_string(number % 10); }

}  // namespace

std::string why_unavailable() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "no NVIDIA driver is loaded; install one, or use another backend";
  }
  if (driver < kLeastDriver) {
    return "the driver offers CUDA " + version(driver) + ", and the kernels need " + version(kLeastDriver) +
           "; update it, or use another backend";
  }
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) {
    return "no GPU can be used (" + std::string(cudaGetErrorString(status)) + "; the driver offers CUDA " +
           version(driver) + "); make one visible or update the driver, or use another backend";
  }
  for (int device = 0; device < devices; ++device) {
    const int capability = read_capability(device);
    if (capability < kLeastCapability) {
      return "CUDA device " + std::to_string(device) + " has compute capability " + capability_name(capability) +
             ", and the kernels need " + capability_name(kLeastCapability) +
             (capability < kLeastSupported ? "; hide it, or use another backend"
                                           : "; install fastmerge again on this machine, or use another backend");
    }
  }
  return devices ? "" : "no GPU is visible; make one visible, or use another backend";
}

void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error("CUDA error in " + what + ": " + cudaGetErrorString(status));
}

int multiprocessors(int device) {
  static std::mutex mutex;
  static std::map<int, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  return known.emplace(device, attribute(device, cudaDevAttrMultiProcessorCount)).first->second;
}

std::size_t shared_of_block(int device) {
  return static_cast<std::size_t>(attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

std::size_t shared_of_multiprocessor(int device) {
  return static_cast<std::size_t>(attribute(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor));
}

OnDevice::OnDevice(int device) : device_(device) {
  check(cudaGetDevice(&before_), "the current CUDA device");
  if (before_ != device_) check(cudaSetDevice(device_), "CUDA device " + std::to_string(device_));
}

OnDevice::~OnDevice() {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace fastmerge::cuda
