"""Task arithmetic with Subspace Boosting."""

from __future__ import annotations

from ..steps.method import method
from ._blocks import BoostBlock, Extended
from ._boost import BOOST_PARAMETERS
from .task_arithmetic import TaskArithmetic


@method
class TaskArithmeticSb(Extended):
    """theta = base + boost(lambda * sum_k w_k (theta_k - base))   (Skorobogat et al. 2025, arXiv 2506.16506).

    Per matrix, with the singular values s of the merged delta, falling::

        boost   s'_i = max(s_i, s_j),   j = first index with  s_0 + ... + s_j >= beta * sum s

    The merged delta is that of ``task_arithmetic``, in float32, lambda included. ``beta`` counts from the top: 1 leaves
    the delta as it is, and at 0 every singular value becomes the largest. Other tensors (norms, biases, embeddings and
    head, unless ``matrices: all``) are merged by ``task_arithmetic``. Stacked experts are boosted one by one.

    A delta of zeros stays zero. Singular values of at most 2^-22 of the largest are null: see ``null_space``.
    Fine-tunes in bfloat16 have deltas of full rank whose small singular values are rounding of the weights. They are
    raised too: at a small ``beta`` most of the boosted directions are noise. Boosting also grows the delta's norm.

    A merge of checkpoints gives the same bits again on the same machine. The last bits of a decomposition depend on
    the CPU, its linear algebra library and torch's threads (one, in a merge of checkpoints): elsewhere, results agree
    to about 1e-5 of the boosted delta, less well where its spectrum is steep.
    A tensor without a name (``fastmerge.functional``) needs ``matrices: all``.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "task_arithmetic_sb"
    inner, blocks = TaskArithmetic(), (BoostBlock(prefix=""),)
    parameters = (*TaskArithmetic.parameters, *BOOST_PARAMETERS)
    summary = "task_arithmetic with a boosted spectrum"
    paper = "Skorobogat et al. 2025, arXiv 2506.16506"
