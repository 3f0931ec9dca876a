"""What an adapter does to its base."""

from __future__ import annotations

from typing import NamedTuple

from ..types import InputFile, TensorEntry


class Change(NamedTuple):
    """What an adapter does to one tensor.

    Attributes:
        kind:     of the arithmetic, by its name in ``plan.types.Adapter``.
        parts:    the stored tensors that it takes, in the order of its kind.
        scale:    of what is added.
        detail:   numbers that it needs besides.
        embedding: the tensor is an embedding, [tokens, width]: what is added is transposed.
        optional: nothing is changed where the base does not have the tensor: a bias that a module may lack.
    """

    kind: str
    parts: tuple[TensorEntry, ...]
    scale: float = 1.0
    detail: tuple[float, ...] = ()
    embedding: bool = False
    optional: bool = False


class Experts(NamedTuple):
    """LoRA terms of the parameters of a module that holds stacked experts, the outermost first.

    PEFT does not store which pair belongs to which parameter; the shapes tell.

    Attributes:
        pairs: lora_B [out, rank x experts] and lora_A [rank x experts, in] of every parameter.
        ranks, scales: of the parameters, by their names below the module.
    """

    pairs: tuple[tuple[TensorEntry, TensorEntry], ...]
    ranks: dict[str, int]
    scales: dict[str, float]


class PeftAdapter(NamedTuple):
    """What an adapter does to its base, by the names that the base has for its tensors.

    Attributes:
        file:     identity of its weights.
        changes:  what becomes of a tensor.
        replaced: tensors that the adapter holds whole: modules and biases that were trained, adapted heads.
        experts:  what is added to stacked experts, by module.
    """

    file: InputFile
    changes: dict[str, Change]
    replaced: dict[str, TensorEntry]
    experts: dict[str, Experts]
