// The loops for x86-64 processors with AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

// Before the target changes: what the linker may share between files must not use its instructions.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "isa.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#define FASTMERGE_VECTOR_BYTES 32
#include "loops.h"

namespace fastmerge::cpu {
const Loops kAvx2 = FASTMERGE_LOOPS("avx2");
}
#pragma GCC pop_options
#endif
