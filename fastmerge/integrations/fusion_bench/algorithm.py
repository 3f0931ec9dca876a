"""A FusionBench algorithm that runs any merge method of fastmerge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench import BaseAlgorithm
from torch import nn

from ..calls import Uncovered
from .pools import merge_pool, plain, pool_of, takes_base


class Fastmerge(BaseAlgorithm):
    """Any merge method, on the models of a pool; ``_pretrained_`` is the base where the method takes one.

    Args:
        method:     as in recipes, e.g. ``ties``.
        parameters: of the method, named as in recipes (``lambda`` may be spelt so); per-model ones are one value, or a
                    list in the order of the pool.
        semantics:  whose definition of the method; None takes its default.
        seed:       of random methods.
        inplace:    load the merged weights into the base (the first model where there is none), or into a copy.
    """

    def __init__(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        semantics: str | None = None,
        seed: int = 0,
        inplace: bool = True,
        **options: Any,
    ) -> None:
        self.method, self.semantics, self.seed, self.inplace = method, semantics, seed, inplace
        self.parameters = plain(parameters or {})
        super().__init__(**options)

    def run(self, modelpool: Any) -> nn.Module:
        """Return the merged model.

        Raises:
            ValueError: models or parameters are wrong; the message says what is.
        """
        pool = pool_of(modelpool)
        parameters = {"lambda_" if name == "lambda" else name: value for name, value in self.parameters.items()}
        try:
            return merge_pool(
                pool, method=self.method, semantics=self.semantics, seed=self.seed, inplace=self.inplace,
                base=takes_base(self.method, pool), **parameters,
            )  # fmt: skip
        except Uncovered as why:
            raise ValueError(str(why).removeprefix("refused: ")) from why
