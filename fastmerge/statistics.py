"""Statistics of a model on texts, for the methods that weigh by data: ``fisher`` and ``regmean``.

    import fastmerge.statistics

    texts = open("texts.txt").read().split("\\n\\n")
    fastmerge.statistics.fisher("org/model", texts, "fisher.safetensors")
    fastmerge.statistics.grams("org/model", texts, "grams.safetensors")

Each needs transformers (``pip install 'fastmerge[statistics]'``), the model in memory, and for ``fisher`` its
gradients.
A model that is loaded already may be given with its tokenizer; it stays on ``device``, in evaluation mode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .errors import FastmergeError
from .progress import Progress

__all__ = ["fisher", "grams"]


def fisher(
    model: Any,
    texts: Sequence[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_length: int = 512,
    labels: str = "sampled",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Write the diagonal of the Fisher information of a causal language model: ``mean_x (d log p(y | x) / d theta)^2``.

    Args:
        model:      folder, hub id, or a model of transformers.
        texts:      what it is measured on, one gradient each.
        out:        safetensors file: one float32 tensor per parameter, named and shaped like it.
        tokenizer:  of a model that is given; by default the model's own.
        max_length: tokens of a text at most.
        labels:     ``sampled``: next tokens y drawn from the model, as Fisher information is defined; ``texts``: those
                    of the text, the empirical Fisher.
        seed:       of the draws.
        device:     where it is computed, as in ``torch.device``.
        progress:   called with the number of texts that are done, and all of them.
    Raises:
        FastmergeError: transformers is missing, or no text has two tokens.
        ValueError:     ``labels`` is none of the two.
    """
    if labels not in ("sampled", "texts"):
        raise ValueError(f"labels is {labels!r}; expected sampled or texts")
    network, encode = _loaded(model, tokenizer, device)
    parameters = dict(network.named_parameters())
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    squares = {name: torch.zeros_like(p, dtype=torch.float32, device="cpu") for name, p in parameters.items()}
    generator = torch.Generator(device).manual_seed(seed)
    count = 0
    try:
        network.requires_grad_(True)
        for tokens in _encoded(encode, texts, max_length, device, progress):
            network.zero_grad(set_to_none=True)
            logits = network(input_ids=tokens).logits[0, :-1].float()
            targets = tokens[0, 1:]
            if labels == "sampled":
                targets = torch.multinomial(logits.softmax(-1).detach(), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    squares[name] += parameter.grad.float().square().cpu()
            count += 1
    finally:
        network.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    _save({name: square.div_(count) for name, square in squares.items()}, out, count, "fisher")


@torch.no_grad()
def grams(
    model: Any,
    texts: Sequence[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_length: int = 512,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Write, per linear layer, the Gram matrix of its inputs over all tokens: ``X^T X / tokens``.

    Arguments and errors are those of ``fisher``; ``out`` gets one float32 matrix [in, in] per linear layer, under the
    name of its weight.
    """
    network, encode = _loaded(model, tokenizer, device)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: Any, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            product = rows.T @ rows
            sums[name] = sums[name] + product if name in sums else product
            counts[name] = counts.get(name, 0) + len(rows)

        return add

    transposed = [name for name, layer in network.named_modules() if type(layer).__name__ == "Conv1D"]
    if transposed:
        raise FastmergeError(
            f"{len(transposed)} layers ({transposed[0]}, ..) are Conv1D of transformers, whose weights are transposed: "
            "regmean takes linear layers only; merge this model by fisher"
        )
    linear = {name: layer for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear.items()]
    texts_done = 0
    try:
        for tokens in _encoded(encode, texts, max_length, device, progress):
            network(input_ids=tokens)
            texts_done += 1
    finally:
        for hook in hooks:
            hook.remove()
    tensors = {f"{name}.weight": (total / counts[name]).cpu().contiguous() for name, total in sums.items()}
    _save(tensors, out, texts_done, "grams")


def _loaded(model: Any, tokenizer: Any, device: str) -> tuple[torch.nn.Module, Any]:
    """Return a model, in evaluation mode, and its tokenizer."""
    if isinstance(model, torch.nn.Module):
        if tokenizer is None:
            raise FastmergeError("a model that is loaded needs its tokenizer; give tokenizer=")
        return model.to(device).eval(), tokenizer
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise FastmergeError(f"statistics need transformers ({error}); pip install 'fastmerge[statistics]'") from error
    network = AutoModelForCausalLM.from_pretrained(os.fspath(model)).float()
    return network.to(device).eval(), tokenizer or AutoTokenizer.from_pretrained(os.fspath(model))


def _encoded(
    encode: Any, texts: Iterable[str], max_length: int, device: str, progress: Progress | None
) -> Iterator[Tensor]:
    """Yield the token ids [1, length] of texts that have at least two."""
    texts, found = list(texts), 0
    for i, text in enumerate(texts):
        ids = list(encode(text)["input_ids"])[:max_length]
        if len(ids) >= 2:
            yield torch.tensor([ids], device=device)
            found += 1
        if progress is not None:
            progress(i + 1, len(texts))
    if not found:
        raise FastmergeError(f"none of {len(texts)} texts has two tokens; there is nothing to measure")


def _save(tensors: dict[str, Tensor], out: str | os.PathLike[str], texts: int, kind: str) -> None:
    """Write a file that appears when it is complete."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file(tensors, partial, metadata={"format": "pt", "statistics": kind, "texts": str(texts)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
