"""The survey that draws masks by the rank of a magnitude in its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import kernels
from ..dtypes import int32
from ..kernels import Keep, Ranked, empty, keep_masked, mask_words
from .source import Chunk, Sliced, Source
from .survey import Survey

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RankMasks(Survey):
    """Per delta, the rule that keeps its elements at random, those with a high rank in their row the likelier.

    Of a whole tensor, or of slices of the first dimension; one read. The masks are ``kernels.rank_mask``'s, one bit per
    element, on the device of the inputs. ``chances`` has (density, epsilon) per delta, or None for one that needs no
    mask, whose answer is None.
    """

    rows: tuple[int, int, int]
    chances: Sequence[tuple[float, float] | None]
    key: int

    def run(self, source: Source) -> list[Keep | None]:
        models = [Ranked(model, *chance) for model, chance in enumerate(self.chances) if chance is not None]

        def draw(chunk: Chunk) -> list[Tensor]:
            return self._masks(chunk, models)

        if source.whole:
            (chunk,) = source.chunks()
            masks, first = draw(chunk), 0
        else:
            assert isinstance(source, Sliced), "methods that rank take whole tensors, or slices"
            masks, first = source.masks(len(models), draw)
        rules = {ranked.model: keep_masked(mask, first) for ranked, mask in zip(models, masks, strict=True)}
        return [rules.get(model) for model in range(len(self.chances))]

    def _masks(self, chunk: Chunk, models: list[Ranked]) -> list[Tensor]:
        tensors = [chunk.tensors[ranked.model] for ranked in models]
        numel = tensors[0].numel()
        outer, length, inner = self.rows
        outer = numel // (length * inner) if length * inner else outer
        masks = [empty(tensor, int32, mask_words(chunk.offset % 32 + numel)) for tensor in tensors]
        kernels.rank_mask(
            masks, tensors, chunk.base, models, rows=(outer, length, inner), key=self.key, offset=chunk.offset
        )
        return masks
