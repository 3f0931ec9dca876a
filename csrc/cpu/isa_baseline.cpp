// The loops for any processor: SSE2 on x86-64, 16-byte vectors of the compiler elsewhere.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Before the target changes: what the linker may share between files must not use its instructions.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "isa.h"

#define FASTMERGE_VECTOR_BYTES 16
#include "loops.h"

namespace fastmerge::cpu {
const Loops kBaseline = FASTMERGE_LOOPS("baseline");
}
