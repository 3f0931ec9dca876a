"""Conversion: read a checkpoint, write one GGUF file, a few rows at a time."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Checkpoint, locate, open_checkpoint
from ..checkpoint.gguf import open_gguf
from ..checkpoint.gguf.header import read_gguf
from ..checkpoint.gguf.settings import FREQUENCIES
from ..checkpoint.layers import says_tied
from ..checkpoint.quantized import decoded
from ..checkpoint.trained import as_hub_models
from ..engine.files import InputFiles, pwrite
from ..engine.folders import partial_folder, sync
from ..errors import CheckpointError, FastmergeError, OutputError, explained
from ..progress import Progress, ProgressLike, shown
from ..recipe.writing import Table, read_names
from .header import write_header
from .layout import KINDS, Written, architecture_of, lay_out, main_kind
from .metadata import Settings, settings_of
from .tokenizer import tokenizer_of
from .values import encoded

__all__ = ["ConversionReport", "convert"]

_QUERY = "layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class ConversionReport:
    """Attributes:
    path:      of the file.
    type:      of its matrices: f32, f16, bf16 or q8_0.
    tensors:   how many it holds.
    others:    names of matrices that are of another type, as their rows are no whole blocks.
    tokenizer: ``gpt2``, ``llama``, or None where the file has none.
    notes:     what the file does not say, one sentence each.
    nbytes:    size of the file.
    seconds:   wall time.
    """

    path: str
    type: str
    tensors: int
    others: tuple[str, ...]
    tokenizer: str | None
    notes: tuple[str, ...]
    nbytes: int
    seconds: float


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    type: str = "auto",
    tokenizer: bool = True,
    pre_tokenizer: str | None = None,
    names: Table | None = None,
    config_source: str | None = None,
    progress: ProgressLike = None,
) -> ConversionReport:
    """Write a checkpoint as one GGUF file. It appears under its name when it is complete and was read back.

    Memory does not grow with the model: a few rows are held at a time (quantized inputs: see ``docs/formats.md``).

    Args:
        model:     a folder or hub id, as recipes name models, or a GGUF file.
        out:       path of the file, which must not exist.
        type:      of matrices: f32, f16, bf16 or q8_0; ``auto`` keeps that of the model. Vectors and routers are f32.
        tokenizer: write the tokenizer, too.
        pre_tokenizer: llama.cpp's name of how its tokenizer splits texts, where that is not recognized.
        names, config_source: of a checkpoint of training, as in ``to_hub``.
        progress:  as in ``fastmerge.merge``; of the bytes that were written.
    Raises:
        InvalidInput:    the table of names is none, or it or a config is given for a model that is not of training.
        CheckpointError: the model cannot be opened, converted or said in GGUF, or holds NaN or infinity.
        OutputError:     ``out`` exists, or the disk refuses.
        FastmergeError:  the package ``gguf`` is missing.
    """
    if type != "auto" and type not in KINDS:
        raise ValueError(f"type is {type!r}; expected auto, {', '.join(KINDS)}")
    started = time.perf_counter()
    final = _target(out)
    _require_gguf()
    stored = open_checkpoint(locate(os.fspath(model)))
    (model_of_hub,) = as_hub_models([stored], read_names(names), config_source)
    checkpoint = decoded(model_of_hub)
    name = architecture_of(checkpoint)
    settings = _settings(checkpoint, name)
    kind = main_kind(checkpoint) if type == "auto" else type
    tensors = lay_out(checkpoint, name, kind, settings.count)
    words = tokenizer_of(checkpoint.folder, settings.count("vocab_size"), pre_tokenizer, name) if tokenizer else None
    with shown(progress, "converting") as call, partial_folder(final) as folder:
        path = folder / final.name
        with explained(str(final), "writing", keeps=False):
            write_header(path, final.stem, kind, settings, tensors, words)
            _write_values(path, settings, tensors, checkpoint, call)
            _check(path, checkpoint)
            sync(path)
            _publish(path, final)
    return ConversionReport(
        path=str(final),
        type=kind,
        tensors=len(tensors) + bool(settings.frequencies),
        others=tuple(t.name for t in tensors if t.kind == KINDS["f16"] != KINDS[kind]),
        tokenizer=words.model if words else None,
        notes=settings.notes,
        nbytes=final.stat().st_size,
        seconds=time.perf_counter() - started,
    )


def _target(out: str | os.PathLike[str]) -> Path:
    path = os.path.expanduser(os.fspath(out))
    final = Path(os.path.realpath(os.path.dirname(path) or ".")) / os.path.basename(path)
    if final.suffix != ".gguf":
        raise OutputError(f"{final}: name a file that ends in .gguf")
    if os.path.lexists(final):
        raise OutputError(f"{final} exists; choose another name, or remove it first")
    return final


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise FastmergeError("GGUF is written with the package gguf (pip install 'fastmerge[gguf]')") from error


def _settings(checkpoint: Checkpoint, name: str) -> Settings:
    config = checkpoint.config or {}
    said = says_tied(config)
    tied = name.startswith("gemma") if said is None else said
    where = checkpoint.source or f"{checkpoint.folder}/config.json"
    if "lm_head.weight" in checkpoint.tensors and name in ("gemma", "gemma2"):
        raise CheckpointError(f"{where}: {name} has no head of its own in llama.cpp, but the model has lm_head.weight")
    if "lm_head.weight" not in checkpoint.tensors and not tied:
        raise CheckpointError(f"{where}: the model has no lm_head.weight, and does not tie it to the embedding")
    embedding, query = (checkpoint.tensors.get(f"model.{part}.weight") for part in ("embed_tokens", _QUERY))
    if embedding is None or query is None or len(embedding.shape) != 2 or len(query.shape) != 2:
        raise CheckpointError(f"{checkpoint.place}: the model has no embedding, or no attention in its first layer")
    try:
        return settings_of(config, name, embedding.shape[0], query.shape[0])
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error} (take llama.cpp's converter)") from error


def _write_values(
    path: Path,
    settings: Settings,
    tensors: list[Written],
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> None:
    import numpy

    places = read_gguf(str(path)).tensors
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with InputFiles(checkpoint.files) as inputs:
            inputs.open()
            if settings.frequencies:
                values = numpy.array(settings.frequencies, dtype="<f4")
                pwrite(descriptor, values.view(numpy.uint8).data, places[FREQUENCIES].offset)
            for tensor in tensors:
                offset = places[tensor.name].offset
                for piece in encoded(tensor, inputs, checkpoint.place):
                    pwrite(descriptor, piece, offset)
                    offset, done = offset + len(piece), done + len(piece)
                    if progress is not None:
                        progress(done, total)
                if offset != places[tensor.name].offset + places[tensor.name].nbytes:
                    raise OutputError(f"{path}: {tensor.name} has another size than its place")
            inputs.check()
    finally:
        os.close(descriptor)


def _check(path: Path, checkpoint: Checkpoint) -> None:
    """Read the header back: it must describe the tensors and sizes of the checkpoint."""
    back = open_gguf(str(path))
    shapes = {name: entry.shape for name, entry in back.tensors.items()}
    if shapes != {name: entry.shape for name, entry in checkpoint.tensors.items()}:
        raise OutputError(f"{path}: reads as other tensors than those of {checkpoint.place}")
    own, config = back.config or {}, checkpoint.config or {}
    for key in sorted(own.keys() & config.keys() - _SPELLINGS):
        if own[key] != config[key] and config[key] is not None:
            raise OutputError(f"{path}: reads as {key} {own[key]!r}, but the model's is {config[key]!r:.50}")


# Members that may be written in several ways, or that say what llama.cpp does not ask.
_SPELLINGS = {
    "architectures", "model_type", "hidden_activation", "rope_scaling", "rope_theta", "tie_word_embeddings",
    "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "num_experts", "mlp_only_layers",
}  # fmt: skip


def _publish(path: Path, final: Path) -> None:
    """Give the file its name, unless another one has it by now."""
    try:
        os.link(path, final)
    except FileExistsError:
        raise OutputError(f"{final} appeared meanwhile; nothing was replaced") from None
    except OSError:  # a file system without links
        if os.path.lexists(final):
            raise OutputError(f"{final} appeared meanwhile; nothing was replaced") from None
        os.rename(path, final)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sync(final.parent)
