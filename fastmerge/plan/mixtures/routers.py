"""Router weights of a mixture: one row per expert and layer, of prompts or at random.

For a prompt, ``hidden`` takes the last token's hidden state before the layer, of the base; an expert's row is the mean
over its positive prompts less the mean over its negative ones. ``cheap_embed`` sums the input embeddings of all tokens
of all prompts and normalizes the sum; the row is that of the positive prompts less that of the negative ones, the same
in every layer. Rows of both have the norm 1. ``random`` draws from the standard normal distribution, ``uniform_random``
evenly from (-1/sqrt(n), 1/sqrt(n)) for n columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...checkpoint.trained import is_trained
from ...dtypes import ALL, float32
from ...errors import FastmergeError
from ...recipe.mixtures import Expert, Mixture
from ...recipe.types import Recipe
from ..findings import Findings
from ..models import OpenModel
from ..stored import Stored
from ..types import InputTensor, Made
from .families import Family

if TYPE_CHECKING:
    from torch import Tensor

Given = Callable[[str], bytes | None]
"""Returns the bytes of a router by its name, of an output that is there; None where it has none."""


class Routers:
    """Makes the routers of a mixture. ``given`` stands in for hidden states, which need the model to be run."""

    def __init__(
        self,
        recipe: Recipe,
        mixture: Mixture,
        family: Family,
        base: OpenModel,
        given: Given | None,
        findings: Findings,
    ):
        self._recipe, self._mixture, self._family, self._base = recipe, mixture, family, base
        self._given = given if mixture.gate_mode == "hidden" else None
        self._gated = mixture.shared if family.shared_gate else ()
        unused = [expert for expert in mixture.shared if expert.positive and not family.shared_gate]
        for expert in unused:
            findings.note(f"{expert.where}: the shared expert of {family.name} has no gate, so prompts have no effect")
        if any(not expert.positive for expert in self._gated) and mixture.gate_mode in ("hidden", "cheap_embed"):
            findings.note(
                f"{self._gated[0].where}: has no positive_prompts, so its gate is zero: half of what it says is added"
            )

    def of_layer(self, prefix: str, layer: int, columns: int) -> Iterator[InputTensor]:
        """Yield the router of a layer, and the gate of its shared expert where there is one."""
        yield self._made(prefix + self._family.router, layer, columns, self._mixture.experts)
        if self._gated:
            yield self._made(prefix + self._family.shared_gate, layer, columns, self._gated)

    def _made(self, name: str, layer: int, columns: int, experts: Sequence[Expert]) -> InputTensor:
        rows = len(experts)
        wanted = self._recipe.dtype
        dtype = ALL[wanted] if wanted else self._base.main_dtype or float32
        mode = self._mixture.gate_mode
        if mode == "random":
            made = Made("normal", name=name, seed=self._recipe.seed)
        elif mode == "uniform_random":
            made = Made("uniform", name=name, seed=self._recipe.seed, bound=1 / math.sqrt(columns))
        else:
            data = self._given(name) if self._given else None
            if data is None:
                import torch

                # Of an output that is looked at, whatever it holds has its checksum.
                values = torch.zeros(rows, columns) if self._given else self._rows(layer, experts, columns)
                data = values.to(dtype.torch).contiguous().view(torch.uint8).numpy().tobytes()
            made = Made("given", name=name, data=data)
        shape = (rows, columns)
        nbytes = math.prod(shape) * dtype.itemsize
        return InputTensor(self._base.index, name, f"router {name}", 0, nbytes, dtype, shape, made=made)

    def _rows(self, layer: int, experts: Sequence[Expert], columns: int) -> Tensor:
        import torch

        of_prompts = self._hidden if self._mixture.gate_mode == "hidden" else self._embedded
        rows = [of_prompts(layer, e.positive, e.negative) if e.positive else torch.zeros(columns) for e in experts]
        return torch.stack([row / row.norm().clamp(min=1e-12) for row in rows])

    def _embedded(self, layer: int, positive: Sequence[str], negative: Sequence[str]) -> Tensor:
        import torch

        def direction(prompts: Sequence[str]) -> Tensor:
            ids = [token for prompt in prompts for token in self._prompts.ids(prompt)]
            total = self._prompts.embedding[torch.tensor(ids)].sum(0)
            return total / total.norm().clamp(min=1e-12)

        return direction(positive) - direction(negative) if negative else direction(positive)

    def _hidden(self, layer: int, positive: Sequence[str], negative: Sequence[str]) -> Tensor:
        import torch

        def mean(prompts: Sequence[str]) -> Tensor:
            return torch.stack([self._prompts.states(prompt)[layer] for prompt in prompts]).mean(0)

        return mean(positive) - mean(negative) if negative else mean(positive)

    @cached_property
    def _prompts(self) -> _Prompts:
        return _Prompts(self._base, self._recipe.where("gate_mode"))


class _Prompts:
    """Tokens, embeddings and hidden states of prompts, by the base model and its tokenizer."""

    def __init__(self, base: OpenModel, where: str):
        try:
            import transformers
        except ImportError as error:
            what = f"routers that are made of prompts need transformers ({error})"
            raise FastmergeError(f"{what}; pip install 'fastmerge[moe]', or write gate_mode: random") from error
        self._transformers, self._base, self._where = transformers, base, where
        self._states: dict[str, list[Tensor]] = {}
        self._tokens: dict[str, list[int]] = {}

    def ids(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, special ones included."""
        if prompt not in self._tokens:
            ids = list(self._tokenizer(prompt)["input_ids"])
            if not ids:
                raise FastmergeError(f"{self._where}: the prompt {prompt!r} has no tokens")
            rows = math.inf if self._base.embedding is None else self._base.embedding.shape[0]
            if max(ids) >= rows:
                what = f"has the token {max(ids)}, but the embedding of the base {self._base} has {rows} rows"
                raise FastmergeError(f"{self._where}: the prompt {prompt!r} {what}; choose other words")
            self._tokens[prompt] = ids
        return self._tokens[prompt]

    @cached_property
    def embedding(self) -> Tensor:
        """The input embedding: [tokens, columns] float32."""
        import torch

        tensor = self._base.embedding
        if tensor is None or not tensor.plain:
            what = "needs an embedding that is neither quantized nor adapted"
            raise FastmergeError(f"{self._where}: gate_mode cheap_embed {what}: {self._base}")
        stored = Stored(tensor, self._base).read(0, tensor.nbytes)
        return torch.frombuffer(stored, dtype=tensor.dtype.torch).view(tensor.shape).float()

    def states(self, prompt: str) -> list[Tensor]:
        """Return the last token's hidden state before every layer: [columns] float32 each."""
        import torch

        if prompt not in self._states:
            with torch.no_grad():
                out = self._model(input_ids=torch.tensor([self.ids(prompt)]), output_hidden_states=True)
            self._states[prompt] = [state[0, -1].float() for state in out.hidden_states]
        return self._states[prompt]

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return self._transformers.AutoTokenizer.from_pretrained(self._base.checkpoint.folder)
        except (OSError, ValueError, KeyError) as error:
            raise FastmergeError(f"{self._where}: the base {self._base} has no usable tokenizer: {error}") from error

    @cached_property
    def _model(self) -> Any:
        checkpoint, who = self._base.checkpoint, f"{self._where}: gate_mode hidden cannot run the base {self._base}"
        if self._base.reference.lora is not None:
            raise FastmergeError(f"{who}, which has an adapter; merge it into its base first")
        if checkpoint.source or is_trained(checkpoint):  # what else is in the folder are other weights
            raise FastmergeError(f"{who}, which is no folder that transformers loads; convert it, or name the folder")
        try:
            return self._transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype="auto").eval()
        except (OSError, ValueError, KeyError) as error:
            raise FastmergeError(f"{who}: {error}") from error
