// The loops for x86-64 processors with AVX512.
#if defined(__x86_64__)
// gcc.gnu.org/PR105593: g++ 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

// Before the target changes: what the linker may share between files must not use its instructions.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "isa.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#define FASTMERGE_VECTOR_BYTES 64
#include "loops.h"

namespace fastmerge::cpu {
const Loops kAvx512 = FASTMERGE_LOOPS("avx512");
}
#pragma GCC pop_options
#endif
