// All loops of one instruction set. An isa_*.cpp sets the target and FASTMERGE_VECTOR_BYTES, then includes this file.
#pragma once

#include "loops_bytes.h"
#include "loops_merge.h"
#include "loops_norms.h"
#include "loops_rank.h"
#include "loops_select.h"
#include "loops_sum.h"

#define FASTMERGE_LOOPS(name)                                                           \
  {name,        weighted_sum, sparse_merge, gram,     norms,        deltas,    collect, \
   count_equal, histogram,    rank_mask,    low_rank, cell_digests, all_finite}
