"""What the two DELLA methods share: masks by the rank of a magnitude in its row, and the memory that they take."""

from __future__ import annotations

import math
from collections.abc import Generator

from ..kernels import NOTHING, Keep, keep_all, keep_top, mask_words, tensor_key
from ..steps.method import Group, Method, Parameter
from ..steps.rank_masks import RankMasks
from ..steps.survey import Survey
from ._sparse import INT8_MASK, LAMBDA, WEIGHT, density_parameter

# Threads that rank rows at a time, at most, as far as memory goes: more of them take rows that are short.
_THREADS = 16


def della_parameters(normalize: bool) -> tuple[Parameter, ...]:
    """Return the parameters of a DELLA method; ``normalize`` is its default."""
    return (
        WEIGHT,
        density_parameter("mean probability that an element of the delta is kept"),
        Parameter(
            "epsilon", float, 0.15, True, 0.0, 0.5,
            doc="the probability rises with the rank from density - epsilon to density + epsilon",
        ),
        Parameter("normalize", bool, normalize, doc="divide by the sum of the weights that take part"),
        Parameter("rescale", bool, True, doc="give each dropped delta its L1 norm back"),
        LAMBDA,
        INT8_MASK,
    )  # fmt: skip


class RankedMethod(Method):
    """A method that drops by rank: it takes whole tensors, since a mask is drawn of whole rows and then kept.

    Ranks of a mesh take slices of the first dimension, of which each is whole rows.
    """

    base = "required"
    random = True
    on_strips = True
    leaves = True

    def scratch_bytes(self, group: Group) -> int | None:
        """The masks, and the work space of ranking.

        On the CPU (loops_rank.h) at most 32 bytes per element of a row, beside 40 KiB for each thread, and 8 more per
        element of the columns that are ranked together; on a GPU (rank_mask.cu) 16 bytes per element of so many rows as
        20 MiB hold, where a row exceeds the shared memory, and a word for each row of a model that is not short.
        """
        masks = sum(chance is not None for chance in _chances(group))
        if not masks:
            return None
        _, length, inner = _rows(group.shape)
        rows = min(group.numel, _THREADS * length)
        cpu = 32 * rows + 8 * min(group.numel, 32 * rows) * (inner > 1)
        numel = masks * group.numel
        gpu = 16 * min(numel, max(length, 20 << 16)) * (length > 4096) + 4 * (numel // 512 + 1)
        return masks * 4 * mask_words(group.numel) + max(cpu, gpu)

    def by_slices(self, group: Group) -> range:
        return range(len(group.shape) > 1)


def keep_by_rank(group: Group) -> Generator[Survey, list[Keep | None], list[Keep]]:
    """Return rules that keep the elements of each delta by the rank of their magnitude in its row.

    Density 1 keeps everything, density 0 nothing, whatever epsilon is. ValueError for other densities that epsilon
    takes out of (0, 1). No survey where no delta needs a mask.
    """
    chances = _chances(group)
    for k, chance in enumerate(chances):
        if chance is not None and not (chance[0] - chance[1] > 0 and chance[0] + chance[1] < 1):
            raise ValueError(
                f"{group.name}: model {k} has density {chance[0]} and epsilon {chance[1]}; density - epsilon must be "
                "above 0 and density + epsilon below 1"
            )
    rules: list[Keep | None] = [None] * group.models
    if any(chances):
        rules = yield RankMasks(_rows(group.shape), chances, tensor_key(group.seed, group.name))
    without = [keep_all() if density >= 1 else keep_top(NOTHING) for density in group["density"]]
    return [other if rule is None else rule for rule, other in zip(rules, without, strict=True)]


def _chances(group: Group) -> list[tuple[float, float] | None]:
    """Return density and epsilon of the models that need a mask."""
    pairs = zip(group["density"], group["epsilon"], strict=True)
    return [(density, epsilon) if 0 < density < 1 else None for density, epsilon in pairs]


def _rows(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a shape as (outer, length, inner): rows lie along the second dimension, and one is all of a vector."""
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    return shape[0], shape[1], math.prod(shape[2:])
