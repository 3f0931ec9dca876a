"""GGUF inputs: values as the ``gguf`` package decodes them, names and order of rows as in transformers."""

from __future__ import annotations

import json

import pytest
import torch
from quantized_files import decode
from tiny_merges import assert_same_tensors, expected, outputs_of
from tiny_models import make_tensors, save_model

gguf = pytest.importorskip("gguf")

from gguf_files import SIZE, make_experts, write_gguf  # noqa: E402

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


def assert_same_values(checkpoint, wanted):
    assert checkpoint.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        assert checkpoint.tensors[name].shape == value.shape, name
        assert torch.equal(decode(checkpoint.tensors[name]).view(value.shape).float(), value), name


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_norms_of_gemma(tmp_path, architecture):
    given = tensors(tied=True)
    if architecture != "gemma":
        for part in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            given[f"model.layers.0.{part}.weight"] = torch.rand(SIZE["hidden"])
    if architecture == "gemma3":
        for part in ("q_norm", "k_norm"):
            given[f"model.layers.0.self_attn.{part}.weight"] = torch.rand(SIZE["hidden"] // SIZE["heads"])
    wanted = write_gguf(tmp_path / "model.gguf", given, architecture, "Q8_0")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config["tie_word_embeddings"] is True
    assert_same_values(checkpoint, wanted)
    if architecture != "gemma":
        assert checkpoint.config["query_pre_attn_scalar"] == SIZE["hidden"] // SIZE["heads"]


EXPERTS = {"expert_count": 3, "expert_used_count": 2}


@pytest.mark.parametrize("kind", ["mixtral", "qwen2moe", "qwen3moe"])
@pytest.mark.parametrize("quantized", ["F16", "Q8_0"])
def test_experts_are_apart_again(tmp_path, kind, quantized):
    given = {name: t for name, t in tensors().items() if ".mlp." not in name}
    given |= make_experts(kind)
    architecture = "llama" if kind == "mixtral" else kind
    wanted = write_gguf(tmp_path / "model.gguf", given, architecture, quantized, **EXPERTS)
    checkpoint = open_checkpoint(str(tmp_path))
    assert_same_values(checkpoint, wanted)
    expected = {
        "mixtral": {"model_type": "mixtral", "num_local_experts": 3},
        "qwen2moe": {"model_type": "qwen2_moe", "num_experts": 3, "norm_topk_prob": False, "moe_intermediate_size": 64,
                     "shared_expert_intermediate_size": 64, "mlp_only_layers": []},
        "qwen3moe": {"model_type": "qwen3_moe", "num_experts": 3, "norm_topk_prob": True, "moe_intermediate_size": 64},
    }[kind]  # fmt: skip
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.config["num_experts_per_tok"] == 2
    write_gguf(tmp_path / "model.gguf", given, architecture, quantized, expert_count=4, expert_used_count=2)
    with pytest.raises(CheckpointError, match="not that of all experts, stacked"):
        open_checkpoint(str(tmp_path))


def test_all_parts_of_a_split_model(tmp_path):
    wanted = write_gguf(tmp_path / "m.gguf", tensors(), "llama", "Q8_0", part_tensors=5)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for named in (tmp_path, parts[0], parts[2]):
        checkpoint = open_checkpoint(str(named))
        assert_same_values(checkpoint, wanted)
        assert [file.path for file in checkpoint.files] == [str(part) for part in parts]


def test_parts_that_do_not_belong_together(tmp_path):
    write_gguf(tmp_path / "m.gguf", tensors(), "llama", "Q8_0", part_tensors=5)
    one, two, three = sorted(tmp_path.iterdir())
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(one.read_bytes())
    with pytest.raises(CheckpointError, match=r"is part 0 \(from 0\) of 3, but it is named as part 0 of 1"):
        open_checkpoint(str(whole))
    kept = two.read_bytes()
    two.write_bytes(three.read_bytes())
    with pytest.raises(CheckpointError, match=r"part 2 \(from 0\) of 3, but it is named as part 1 of 3"):
        open_checkpoint(str(one))
    two.unlink()
    with pytest.raises(CheckpointError, match=r"the part .*m-00002-of-00003.gguf is missing \(download all 3 parts"):
        open_checkpoint(str(three))
    two.write_bytes(kept[:-64])
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003.gguf: .* ends at byte"):
        open_checkpoint(str(one))


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
    config = {"model_type": "qwen2", "num_attention_heads": 4, "own": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(tmp_path)).config["own"] == 1
    assert locate(str(tmp_path / "model.gguf")) == str(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8}))
    with pytest.raises(CheckpointError, match=r"num_attention_heads is 8, but qwen2.attention.head_count .* is 4"):
        open_checkpoint(str(tmp_path))


def frequencies(factor=8.0, width=64):
    """As llama.cpp's converter computes them, for a base of 10000."""
    wavelengths = 2 * torch.pi * 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    smooth = ((8192 / wavelengths - 1) / 3).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def test_frequencies_of_llama_3(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), "llama", "F16", buffers={"rope_freqs.weight": frequencies()})
    checkpoint = open_checkpoint(str(path))
    scaling = checkpoint.config["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"], scaling["high_freq_factor"]) == ("llama3", 8, 4)
    assert checkpoint.left_out.keys() == {"rope_freqs.weight"}
    write_gguf(path, tensors(), "llama", "F16", buffers={"rope_freqs.weight": torch.linspace(1, 8, 32)})
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight is not that of Llama 3.1"):
        open_checkpoint(str(path))


def test_scaled_positions(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), "qwen2", "F16", texts={"rope.scaling.type": "yarn"})
    with pytest.raises(CheckpointError, match=r"rope.scaling is 'yarn' with the factor None"):
        open_checkpoint(str(path))
    extra = {"rope.scaling.factor": 4, "rope.scaling.original_context_length": 32}
    write_gguf(path, tensors(), "qwen2", "F16", texts={"rope.scaling.type": "yarn"}, **extra)
    assert open_checkpoint(str(path)).config["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_floats_keep_their_dtype(tmp_path, kind):
    """Rows in another order are not quantized: F16 stays float16, F32 float32."""
    write_gguf(tmp_path / "one.gguf", tensors(1), "llama", kind)
    plan = make_plan(load(recipe_of("linear", tmp_path / "one.gguf")))
    dtypes = {output.name: str(output.dtype) for output in plan.outputs}
    own = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
    assert all(dtype == ("float32" if "norm" in name else own) for name, dtype in dtypes.items()), dtypes
    assert not any("is quantized" in note for note in plan.notes)
    assert any("the tokenizer in a GGUF file is not converted" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:100], "corrupt or incomplete"),
        (lambda data: b"GGML" + data[4:], "is no GGUF file"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "is GGUF of version 1"),
        (lambda data: data[:4] + (3).to_bytes(4, "big") + data[8:], "is big-endian"),
        (lambda data: data[:8] + (2**60).to_bytes(8, "little") + data[16:], "more than the .* items that are read"),
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


def test_tensors_that_share_bytes(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), "llama", "F16")
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8 + 4
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"begins at byte \d+, within "):
        open_checkpoint(str(path))


def test_headers_are_read_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), "llama", "F16")
    monkeypatch.setattr("fastmerge.checkpoint.gguf.header.MOST_BYTES", 500)
    with pytest.raises(CheckpointError, match=r"its header needs \d+ bytes, more than the 500 that are read"):
        open_checkpoint(str(path))
