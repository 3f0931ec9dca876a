"""What mergekit's own tests import as ``tests.common``, which its source archive lacks.

Whole merges are fastmerge's where the environment says FASTMERGE_CASES=merge; where it says ``patched`` they are
mergekit's with our kernels, and else its own.

Runs in the interpreter that has mergekit, as a plugin of pytest there; ``mergekit_cases.py`` sees to both.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mergekit.merge
import transformers
from mergekit.options import MergeOptions
from safetensors.torch import load_file

import fastmerge

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}


def run_merge(merge_config: Any, out_path: str, options: MergeOptions, config_source: str | None = None) -> None:
    """Merge as ``mergekit.merge.run_merge`` is asked to; notes go to the log."""
    recipe = config_source or merge_config.to_yaml()
    given = {
        "allow_mixed_types": options.allow_crimes,
        "truncate_embeddings": options.unsafe_truncate_embeddings,
        "copy_tokenizer": options.copy_tokenizer,
        "seed": options.random_seed,
    }
    for note in fastmerge.check(recipe, **given).notes:
        logging.getLogger(__name__).warning("%s", note)
    fastmerge.merge(recipe, out_path, model_card=options.write_model_card, **given)


MODE = os.environ.get("FASTMERGE_CASES")
if MODE == "merge":
    mergekit.merge.run_merge = run_merge
elif MODE == "patched":
    from fastmerge.integrations.mergekit import patch

    patched = patch()
    atexit.register(lambda: print(patched.report, file=sys.stderr))


def run_and_check_merge(
    config: Any,
    check_nan: bool = True,
    check_tensors: bool = True,
    validate: Callable[[str], None] | None = None,
    index_json_name: str | None = None,
    auto_arch: bool = False,
) -> None:
    """Merge into a new folder, look for NaN, let transformers find every tensor, and ``validate``."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "out"))
        mergekit.merge.run_merge(config, out, MergeOptions(write_model_card=False))
        tensors = {name: t for path in Path(out).glob("*.safetensors") for name, t in load_file(path).items()}
        assert tensors
        if check_nan:
            assert not [name for name, tensor in tensors.items() if tensor.isnan().any()]
        if check_tensors:
            loader = transformers.AutoModelForImageTextToText if auto_arch else transformers.AutoModelForCausalLM
            _, found = loader.from_pretrained(out, output_loading_info=True)
            assert not found["missing_keys"]
            assert not found["unexpected_keys"]
        if validate:
            validate(out)


def make_picollama(path: Any, vocab_size: int = 64) -> str:
    config = transformers.LlamaConfig(**SMALL, vocab_size=vocab_size)
    return _save(transformers.LlamaForCausalLM(config), path)


def make_picogranite(path: Any, vocab_size: int = 64) -> str:
    config = transformers.GraniteConfig(**SMALL, vocab_size=vocab_size)
    return _save(transformers.GraniteForCausalLM(config), path)


def make_gpt2size(path: Any, vocab_size: int = 64) -> str:
    """With the layers of GPT-2, which the tests cut by their numbers, and narrower."""
    config = transformers.GPT2Config(n_embd=36, n_inner=48, n_head=12, n_layer=12, vocab_size=vocab_size)
    return _save(transformers.GPT2LMHeadModel(config), path)


def make_picoLlaVa(path: Any) -> str:
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=16)
    text = transformers.LlamaConfig(**SMALL, vocab_size=64)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    return _save(transformers.LlavaForConditionalGeneration(config), path)


def _save(model: transformers.PreTrainedModel, path: Any) -> str:
    model.save_pretrained(path)
    return str(path)
