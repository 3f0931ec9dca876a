"""GGUF inputs: values as the ``gguf`` package decodes them, names and order of rows as in transformers."""

from __future__ import annotations

import json

import pytest
import torch
from quantized_files import decode
from tiny_merges import assert_same_tensors, expected, outputs_of
from tiny_models import make_tensors, save_model

gguf = pytest.importorskip("gguf")

from gguf_files import SIZE, write_gguf  # noqa: E402

from fastmerge.checkpoint import locate, open_checkpoint  # noqa: E402
from fastmerge.engine import RunOptions, run, verify  # noqa: E402
from fastmerge.engine.checksums import BLOCK  # noqa: E402
from fastmerge.errors import CheckpointError  # noqa: E402
from fastmerge.plan import make_plan  # noqa: E402
from fastmerge.recipe import load  # noqa: E402

QUANTIZABLE = [
    kind.name
    for kind, traits in gguf.quants._type_traits.items()
    if "quantize_blocks" in vars(traits) and kind.name not in ("F32", "F16")
]


def tensors(seed=0, **size):
    return make_tensors(seed, dtype=torch.float32, **{**SIZE, **size})


@pytest.mark.parametrize("kind", ["F32", "F16", *QUANTIZABLE])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_values_of_the_package(tmp_path, kind, architecture):
    wanted = write_gguf(tmp_path / "model.gguf", tensors(), architecture, kind)
    checkpoint = open_checkpoint(str(tmp_path / "model.gguf"))
    assert checkpoint.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        entry = checkpoint.tensors[name]
        assert entry.shape == tuple(value.shape), name
        rows = value.reshape(-1, value.shape[-1])
        assert torch.equal(decode(entry).float(), rows), name
        assert torch.equal(decode(entry, len(rows) // 3, len(rows)).float(), rows[len(rows) // 3 :]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the package, over infinite scales
def test_every_type_that_the_package_decodes_is_known():
    """Types that it cannot write are decoded from random bytes."""
    from fastmerge.checkpoint.gguf.header import TYPES
    from fastmerge.checkpoint.gguf.values import FLOATS, GgufValues

    names = {kind.name: int(kind) for kind in gguf.quants._type_traits}
    assert set(names.values()) - set(FLOATS) <= TYPES.keys() | {int(gguf.GGMLQuantizationType.BF16)}
    for name, kind in names.items():
        if kind in FLOATS or kind not in TYPES:
            continue
        title, elements, nbytes = TYPES[kind]
        assert title == name and (elements, nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        codes = torch.randint(0, 256, (3, 2 * nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(kind))
        out = torch.empty(3, 2 * elements)
        GgufValues(kind).decode(out, [codes], 0)
        want = torch.from_numpy(gguf.quants.dequantize(codes.numpy(), gguf.GGMLQuantizationType(kind)))
        assert torch.equal(out.nan_to_num(7), want.nan_to_num(7)), name


@pytest.mark.parametrize("architecture", ["gemma", "gemma2"])
def test_norms_of_gemma(tmp_path, architecture):
    given = tensors(tied=True)
    if architecture == "gemma2":
        for part in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            given[f"model.layers.0.{part}.weight"] = torch.rand(SIZE["hidden"])
    wanted = write_gguf(tmp_path / "model.gguf", given, architecture, "Q8_0")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.tensors.keys() == wanted.keys() and checkpoint.config["tie_word_embeddings"] is True
    for name, value in wanted.items():
        assert torch.equal(decode(checkpoint.tensors[name]).view(value.shape), value), name


def test_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_gguf(tmp_path / "model.gguf", tensors(), "llama", "Q8_0", **{"rope.dimension_count": 64})
    checkpoint = open_checkpoint(str(tmp_path / "model.gguf"))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        pytest.skip(f"this transformers does not read the file: {error}")
    state = model.state_dict()
    for name, entry in checkpoint.tensors.items():
        assert torch.allclose(decode(entry).view(entry.shape).float(), state[name].float(), atol=1e-6), name
    own = transformers.AutoConfig.for_model(**checkpoint.config)
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers"):
        assert getattr(own, key) == getattr(model.config, key)


def recipe_of(method, *models, base=None):
    lines = [f"merge_method: {method}"] + ([f"base_model: {base}"] if base else []) + ["models:"]
    lines += [f"- {{model: {model}, parameters: {{weight: 0.5, density: 0.5}}}}" for model in models]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_merges_with_ordinary_models(tmp_path, method):
    base = tensors()
    write_gguf(tmp_path / "one.gguf", tensors(1), "llama", "Q4_0")
    write_gguf(tmp_path / "two.gguf", tensors(2), "llama", "Q8_0")
    save_model(tmp_path / "base", {name: t.bfloat16() for name, t in base.items()}, heads=4, kv_heads=2)
    base_model = tmp_path / "base" if method == "ties" else None
    plan = make_plan(load(recipe_of(method, tmp_path / "one.gguf", tmp_path / "two.gguf", base=base_model)))
    wanted = expected(plan)
    run(plan, tmp_path / "out", RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(tmp_path / "out"), wanted)
    assert verify(tmp_path / "out").ok
    assert {t.dtype for t in wanted.values()} <= {torch.bfloat16, torch.float32}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["model_type"]) == (4, 2, "llama")


def test_config_beside_the_file_wins(tmp_path):
    write_gguf(tmp_path / "model.gguf", tensors(), "qwen2", "F16")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_attention_heads": 4, "own": 1}))
    assert open_checkpoint(str(tmp_path)).config["own"] == 1
    assert locate(str(tmp_path / "model.gguf")) == str(tmp_path / "model.gguf")


def test_frequencies_of_llama_3(tmp_path):
    buffers = {"rope_freqs.weight": torch.tensor([1.0, 2.0, 8.0])}
    write_gguf(tmp_path / "model.gguf", tensors(), "llama", "F16", buffers=buffers)
    checkpoint = open_checkpoint(str(tmp_path / "model.gguf"))
    assert (checkpoint.config["rope_scaling"]["rope_type"], checkpoint.config["rope_scaling"]["factor"]) == (
        "llama3",
        8,
    )
    assert checkpoint.left_out.keys() == {"rope_freqs.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:100], "corrupt or incomplete"),
        (lambda data: b"GGML" + data[4:], "is no GGUF file"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "is GGUF of version 1"),
        (lambda data: data[:4] + (3).to_bytes(4, "big") + data[8:], "is big-endian"),
        (lambda data: data[:8] + (2**60).to_bytes(8, "little") + data[16:], "exceed the file"),
        (lambda data: data[:-4000], r"ends at byte \d+, the file has"),
        (lambda data: data.replace(b"llama", b"lxama"), "its architecture is 'lxama'; read are llama"),
        (lambda data: data.replace(b"blk.0.ffn_up", b"blk.0.xxx_up"), "is no tensor of llama"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), "llama", "Q8_0")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(path))


def test_folders_with_several_files(tmp_path):
    for name in ("a", "b"):
        write_gguf(tmp_path / f"{name}.gguf", tensors(), "llama", "Q8_0")
    with pytest.raises(CheckpointError, match="several models in GGUF"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "a.gguf").rename(tmp_path / "a-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="1 of 2 parts are missing"):
        open_checkpoint(str(tmp_path / "a-00001-of-00002.gguf"))
