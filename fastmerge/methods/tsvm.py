"""TSV-M: task singular vectors, merged without interference."""

from __future__ import annotations

from ..steps.method import Group, method
from ._spectral import Change, SpectralMethod, on_moved


@method
class Tsvm(SpectralMethod):
    """theta = base + lambda * polar([U_1 .. U_T]) diag(s_1 .. s_T) polar([V_1 .. V_T])^T   (Gargiulo et al. 2025).

    Per matrix [m, n]: U_k diag(s_k) V_k^T is the leading part, of rank max(1, min(m, n) // T), of w_k (theta_k - base).
    Making the vectors of all T models orthogonal removes what one model adds along the directions of another.
    A model whose delta is zero here, or whose weight is 0, takes no part and does not count in T. Models that
    are orthogonal already are summed; one model alone returns itself.

    Other tensors (norms, biases, embeddings and head, unless ``matrices: all``), and matrices with fewer rows or
    columns than there are models, get ``base + lambda * weighted mean of the deltas``. Stacked experts are taken one by
    one. The weights default to 1: the paper has none. One factor on all of them scales the result on matrices and not
    elsewhere. (mergekit's pull request 639 takes ``weight`` and ignores it here.)

    Directions that models share leave null directions: see ``null_space``. With ``keep`` a model that is given
    twice counts once; with ``reference`` arbitrary directions take the second one's place. The result is a sum over
    models: lambda below 1 keeps its size near that of one model's delta.

    How far results are reproducible, ``task_arithmetic_sb`` says.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "tsvm"
    summary = "directions of all deltas, made orthogonal"
    paper = "Gargiulo et al. 2025, arXiv 2412.00081"
    ordered = True

    def change(self, group: Group) -> Change:
        from ..kernels.spectral import orthogonalize_blocks

        null = group["null_space"]
        return on_moved(lambda deltas: orthogonalize_blocks(deltas, null=null))
