"""Dtypes of the output, and tensors that models keep in float32 and a recipe's dtype would round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..dtypes import ALL, DType, bfloat16, float16, float32, float64, promoted
from ..recipe.types import Recipe
from ..steps.inputs import Inputs
from .findings import Findings, listed
from .models import MERGED, OpenModel
from .rows import Row
from .types import InputTensor


def output_dtype(row: Row, recipe: Recipe) -> DType:
    """Return the dtype of the output: what the recipe says, else what holds every value of the inputs."""
    dtypes = {tensor.stored_dtype for tensor in row.inputs.every}
    name = recipe.out_dtype or recipe.dtype
    if name and row.inputs.every[0].dtype in MERGED:
        kept = float32 in dtypes and any(part.matches(row.name) for part in recipe.keep_float32)
        return float32 if kept else ALL[name]
    if any(model.checkpoint.quantized for model in row.members.models.every) and dtypes <= set(MERGED):
        # Decoded values, and what a model keeps beside them in the float16 of its kernels.
        coded = any(tensor.quantized for tensor in row.inputs.every)
        return float32 if float32 in dtypes and not coded else bfloat16
    return promoted(dtypes)


def rounded(row: Row, recipe: Recipe, dtype: DType) -> tuple[Inputs[InputTensor], DType | None]:
    """Return the inputs of a row as they take part, and the dtype to which the result is rounded first, or None.

    Computing is in float32, so float64 is rounded to it on the way in and widened on the way out. A recipe with both
    ``dtype`` and ``out_dtype`` asks, as mergekit has it, for inputs and result in ``dtype``; the result is then
    converted to ``out_dtype``.
    """
    inner = None
    both = recipe.dtype and recipe.out_dtype and row.members.part.semantics == "mergekit"
    if both and not any(part.matches(row.key) for part in recipe.keep_float32):
        assert recipe.dtype
        inner = ALL[recipe.dtype]
    limit = float32 if inner in (None, float64) else inner

    def narrow(tensor: InputTensor) -> InputTensor:
        asked = inner is not None or tensor.dtype == float64
        if not asked or tensor.dtype not in MERGED or _holds(limit, tensor.summed_dtype):
            return tensor
        return replace(tensor, rounded=limit)

    converted = dtype in MERGED and dtype != limit and (limit != float32 or dtype == float64)
    return row.inputs.map(narrow), limit if converted else None


def _holds(dtype: DType, other: DType) -> bool:
    """True where ``dtype`` has every value of ``other``."""
    return promoted((dtype, other)) == dtype


@dataclass
class Narrowed:
    """Collects the float32 tensors of models of 16 bits that the recipe's dtype rounds, as routers and decays are."""

    recipe: Recipe
    _names: list[str] = field(default_factory=list)
    _dtype: DType = float32
    _doubles: list[str] = field(default_factory=list)

    def look(self, row: Row, dtype: DType) -> None:
        if float64 in (dtype, *(tensor.dtype for tensor in row.inputs.every)):
            self._doubles.append(row.name)
        if dtype in (float32, float64) or not dtype.is_floating_point:
            return
        pairs = zip(row.inputs.every, row.members.models.every, strict=True)
        if any(_is_kept_wide(tensor) and _is_mostly_narrow(model) for tensor, model in pairs):
            self._names.append(row.name)
            self._dtype = dtype

    def report(self, rows: list[Row], findings: Findings) -> None:
        """Add a note on what is rounded, and one for parts of names in ``keep_float32`` that match nothing."""
        if self._names:
            parts = list(dict.fromkeys(_own_name(name) for name in self._names))
            findings.note(
                f"{len(self._names)} tensors that are float32 in models of 16 bits are rounded to {self._dtype}: "
                f"{listed(self._names, 3)} (keep_float32: [{listed(parts, 3)}] keeps them)"
            )
        if self._doubles:
            some = f"{len(self._doubles)} tensors are float64 ({listed(self._doubles, 3)})"
            findings.note(f"{some}: where they are not copied, they are computed in float32")
        for part in self.recipe.keep_float32:
            if not any(part.matches(row.name) for row in rows):
                findings.note(f"{self.recipe.where('keep_float32')}: {part.text!r} is in no tensor's name")


def _is_kept_wide(tensor: InputTensor) -> bool:
    """True for a tensor that is stored in float32; the decoded values of codes never were."""
    return tensor.stored_dtype == float32 and not tensor.quantized


def _is_mostly_narrow(model: OpenModel) -> bool:
    return model.main_dtype in (bfloat16, float16)


def _own_name(name: str) -> str:
    """Return the last part of a name that tells tensors apart: ``A_log``, ``norm``."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
