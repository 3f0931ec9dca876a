#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastmerge::cpu {
namespace {

#if defined(__x86_64__)
// g++ before 11 has no name for this in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

std::vector<const Loops*> runnable() {
  std::vector<const Loops*> found{&kBaseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c()) {
    found.push_back(&kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(&kAvx512);
    }
  }
#endif
  return found;
}

std::atomic<const Loops*> chosen{nullptr};

}  // namespace

const Loops& loops() {
  static const Loops* const widest = runnable().back();
  const Loops* loops = chosen.load(std::memory_order_relaxed);
  return loops ? *loops : *widest;
}

void choose_loops(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen = nullptr;
    return;
  }
  for (const Loops* loops : runnable()) {
    if (std::strcmp(name, loops->name) == 0) {
      chosen = loops;
      return;
    }
  }
  std::string here;
  for (const char* other : available_loops()) here += std::string(", ") + other;
  throw std::invalid_argument("isa is '" + std::string(name) + "'; expected one of auto" + here);
}

std::vector<const char*> available_loops() {
  std::vector<const char*> names;
  for (const Loops* loops : runnable()) names.push_back(loops->name);
  return names;
}

}  // namespace fastmerge::cpu
