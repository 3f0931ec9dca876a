"""The core operations. Each file holds one: contract, PyTorch reference, hooks to the faster backends.

Operations write into buffers of the caller, know nothing of merge methods, and return the same
bits on every backend.
"""

from ._checks import FLOATS, GRID, check_group, float32, why_not_plain
from ._cuda import why_unavailable as why_no_cuda_extension
from ._download import download, download_all
from ._native import cpu_extension, limited_threads, why_no_cpu_extension
from ._registry import BACKENDS, OPERATIONS, BackendError, use_backend
from ._sums import start_totals, total
from .answers import FoundBoundary, FoundFactors, all_found, answers_stay, arc_weights, matched_factors
from .gram import gram_matrix, gram_partials, pairs
from .histogram import HISTOGRAM_BINS, equal_counts, magnitude_histogram
from .keep import (
    ALL_EQUAL,
    EVERYTHING,
    NOTHING,
    Boundary,
    Keep,
    keep_all,
    keep_band,
    keep_masked,
    keep_on_rows,
    keep_random,
    keep_top,
    mask_words,
)
from .low_rank import low_rank_update
from .norms import norm_partials
from .philox import drop_threshold, keep_mask, random_words, tensor_key
from .rank_mask import Ranked, rank_mask
from .select import Selection, SelectJob, found_boundaries, select_boundaries, select_boundaries_many, start_selection
from .sparse_merge import MergeJob, sparse_merge, sparse_merge_many
from .streamed import Stored, can_stream, streamed
from .strip import Strip, as_strip, empty, on_host, zeros
from .weighted_sum import SumJob, weighted_sum, weighted_sum_many

__all__ = [
    "ALL_EQUAL",
    "BACKENDS",
    "EVERYTHING",
    "FLOATS",
    "GRID",
    "HISTOGRAM_BINS",
    "NOTHING",
    "OPERATIONS",
    "BackendError",
    "Boundary",
    "FoundBoundary",
    "FoundFactors",
    "Keep",
    "MergeJob",
    "Ranked",
    "SelectJob",
    "Selection",
    "Stored",
    "Strip",
    "SumJob",
    "all_found",
    "answers_stay",
    "arc_weights",
    "as_strip",
    "can_stream",
    "check_group",
    "cpu_extension",
    "download",
    "download_all",
    "drop_threshold",
    "empty",
    "equal_counts",
    "float32",
    "found_boundaries",
    "gram_matrix",
    "gram_partials",
    "keep_all",
    "keep_band",
    "keep_mask",
    "keep_masked",
    "keep_on_rows",
    "keep_random",
    "keep_top",
    "limited_threads",
    "low_rank_update",
    "magnitude_histogram",
    "mask_words",
    "matched_factors",
    "norm_partials",
    "on_host",
    "pairs",
    "random_words",
    "rank_mask",
    "select_boundaries",
    "select_boundaries_many",
    "sparse_merge",
    "sparse_merge_many",
    "start_selection",
    "start_totals",
    "streamed",
    "tensor_key",
    "total",
    "use_backend",
    "weighted_sum",
    "weighted_sum_many",
    "why_no_cpu_extension",
    "why_no_cuda_extension",
    "why_not_plain",
    "zeros",
]
