"""GGUF outputs: read back by the ``gguf`` package, value by value, and as inputs again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from quantized_files import decode
from tiny_models import make_tensors, save_model

gguf = pytest.importorskip("gguf")

from convertible_models import MODELS, SIZE, write_model  # noqa: E402
from gguf_files import gguf_name, permuted, read, stacked  # noqa: E402

from fastmerge.checkpoint import open_checkpoint  # noqa: E402
from fastmerge.cli import main  # noqa: E402
from fastmerge.conversion import convert, to_dcp, values  # noqa: E402
from fastmerge.engine import run  # noqa: E402
from fastmerge.engine.leftovers import leftovers_in  # noqa: E402
from fastmerge.errors import CheckpointError, FastmergeError, InvalidInput, OutputError  # noqa: E402
from fastmerge.plan import make_plan  # noqa: E402
from fastmerge.recipe import load  # noqa: E402


def stored_values(name, tensor, architecture):
    """The values of a tensor as llama.cpp wants them, float32."""
    result = tensor.float()
    heads = {"q": 4, "k": 2}.get(name.split("_proj.")[0][-1]) if "_proj." in name and "self_attn" in name else None
    if architecture == "llama" and heads:
        result = permuted(result, heads)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        result = result + 1
    return result[0] if "shared_expert_gate" in name else result


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", MODELS)
def test_value_by_value(tmp_path, kind, type, monkeypatch):
    monkeypatch.setattr(values, "AT_ONCE", 3 * 64)
    tensors = write_model(tmp_path / "model", kind)
    architecture = MODELS[kind][0]
    report = convert(tmp_path / "model", tmp_path / "m.gguf", type=type, tokenizer=False)
    found, fields = read(tmp_path / "m.gguf")
    wanted = {gguf_name(name, architecture): (name, t) for name, t in stacked(tensors).items()}
    assert found.keys() == wanted.keys() and report.tensors == len(found)
    for own, (name, tensor) in wanted.items():
        data, stored, shape = found[own]
        want = stored_values(name, tensor, architecture)
        vector = want.dim() == 1 or own.endswith("_norm.weight") or ".ffn_gate_inp." in own
        title = "F32" if vector else type.upper()
        assert (stored.name, shape) == (title, tuple(want.shape)), own
        expected = gguf.quants.quantize(want.contiguous().numpy(), gguf.GGMLQuantizationType[title])
        assert data.tobytes() == expected.tobytes(), own
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.attention.head_count_kv"] == 2
    assert fields[f"{architecture}.block_count"] == 2


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
def test_a_checkpoint_of_training(tmp_path):
    """Names by a table, and the config of another folder: the file of the model itself."""
    names = {"trained.{name*}": "{name*}"}
    write_model(tmp_path / "model", next(iter(MODELS)))
    to_dcp(tmp_path / "model", tmp_path / "run", names=names)
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "one").mkdir()
    convert(tmp_path / "model", tmp_path / "m.gguf", tokenizer=False)
    given = {"names": names, "config_source": str(tmp_path / "model")}
    convert(tmp_path / "run", tmp_path / "one" / "m.gguf", tokenizer=False, **given)
    assert (tmp_path / "one" / "m.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(InvalidInput, match=r"(?s)names: is for checkpoints of torch.*config: is for checkpoints"):
        convert(tmp_path / "model", tmp_path / "none.gguf", **given)


@pytest.mark.parametrize("kind", MODELS)
def test_and_back(tmp_path, kind):
    tensors = write_model(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "m.gguf", tokenizer=False)
    back = open_checkpoint(str(tmp_path / "m.gguf"))
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(decode(back.tensors[name]).view(tensor.shape).to(tensor.dtype), tensor), name
    own = json.loads((tmp_path / "model" / "config.json").read_text())
    alike = {
        "hidden_size",
        "num_attention_heads",
        "rms_norm_eps",
        "attn_logit_softcapping",
        "rope_scaling",
        "model_type",
    }
    for key in alike & own.keys() & back.config.keys() - ({"model_type"} if kind == "mistral" else set()):
        assert back.config[key] == own[key], key


def assert_same_model(one, two):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(one(ids).logits, two(ids).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_a_merge_of_the_file_computes_the_same(tmp_path, kind):
    """The config that is made from the metadata says all that the model's own said."""
    transformers = pytest.importorskip("transformers")
    write_model(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "m.gguf", tokenizer=False)
    plan = make_plan(load(f"merge_method: passthrough\nmodels: [{{model: {tmp_path / 'm.gguf'}}}]\ndtype: bfloat16\n"))
    run(plan, tmp_path / "out")
    read_model = transformers.AutoModelForCausalLM.from_pretrained
    one, two = (read_model(tmp_path / name, dtype=torch.float32) for name in ("model", "out"))
    assert_same_model(one, two)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # whose metadata transformers reads whole
def test_transformers_computes_the_same(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    write_model(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "m.gguf", type="f32", tokenizer=False)
    read_model = transformers.AutoModelForCausalLM.from_pretrained
    one = read_model(tmp_path / "model", dtype=torch.float32)
    try:
        two = read_model(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        pytest.skip(f"this transformers does not read the file: {error}")
    assert_same_model(one, two)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def test_positions(tmp_path):
    write_model(tmp_path / "a", rope_scaling=LLAMA3, rope_theta=500000.0)
    convert(tmp_path / "a", tmp_path / "a.gguf", tokenizer=False)
    back = open_checkpoint(str(tmp_path / "a.gguf")).config
    assert (back["rope_scaling"], back["rope_theta"]) == (LLAMA3, 500000.0)
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}
    write_model(tmp_path / "b", "qwen2", rope_parameters=parameters)
    convert(tmp_path / "b", tmp_path / "b.gguf", tokenizer=False)
    back = open_checkpoint(str(tmp_path / "b.gguf")).config
    assert {**back["rope_scaling"], "rope_theta": back["rope_theta"]} == parameters


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("llama", {"model_type": "phi3"}, "model_type is 'phi3'; converted are llama"),
        ("llama", {"hidden_act": "relu"}, "its activation is 'relu'"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "scaled by 'longrope'"),
        ("llama", {"partial_rotary_factor": 0.5}, "scaled in part only"),
        ("llama", {"rms_norm_eps": None}, "does not say rms_norm_eps"),
        ("llama", {"num_attention_heads": "4"}, "num_attention_heads is '4', expected a count"),
        ("qwen2", {"use_sliding_window": True}, "has a sliding window, which"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False, but llama.cpp computes"),
        ("gemma2", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar is 8, but llama.cpp computes with 16"),
        (
            "gemma2",
            {"attn_logit_softcapping": None},
            "attn_logit_softcapping is None, but llama.cpp computes gemma2 with",
        ),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, but .* gemma3 without it"),
        ("gemma3_text", {"sliding_window": None}, "does not say sliding_window"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "another order of sliding windows"),
        ("llama", {"head_dim": 32}, "a head has 16 rows, but the metadata say 32"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, kind, config, message):
    write_model(tmp_path / "model", kind, **config)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "model", tmp_path / "m.gguf", tokenizer=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_that_do_not_fit(tmp_path):
    tensors = write_model(tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    for value, type, message in (
        (float("nan"), "f32", "NaN or infinity"),
        (1e5, "f16", "cannot hold"),
        (1e8, "q8_0", "cannot"),
    ):
        tensors[name][3, 5] = value
        save_model(tmp_path / "model", tensors)
        with pytest.raises(CheckpointError, match=rf"blk.1.ffn_up.weight holds .*{message}"):
            convert(tmp_path / "model", tmp_path / "m.gguf", type=type, tokenizer=False)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_rows_of_no_whole_blocks(tmp_path):
    save_model(tmp_path / "model", make_tensors(0, **{**SIZE, "inner": 40}))
    report = convert(tmp_path / "model", tmp_path / "m.gguf", type="q8_0", tokenizer=False)
    assert report.others == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert read(tmp_path / "m.gguf")[0]["blk.0.ffn_down.weight"][1].name == "F16"


def test_nothing_is_replaced_or_left(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert(tmp_path / "model", tmp_path / "m.gguf", tokenizer=False)
    assert (tmp_path / "m.gguf").read_text() == "mine"

    def appears(done, total):
        (tmp_path / "n.gguf").write_text("theirs")

    with pytest.raises(OutputError, match="appeared meanwhile"):
        convert(tmp_path / "model", tmp_path / "n.gguf", tokenizer=False, progress=appears)
    assert (tmp_path / "n.gguf").read_text() == "theirs"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "model", tmp_path / "o.gguf", tokenizer=False, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model", "n.gguf"]
    with pytest.raises(OutputError, match=r"name a file that ends in .gguf"):
        convert(tmp_path / "model", tmp_path / "o", tokenizer=False)


def test_what_a_killed_conversion_leaves_is_found(tmp_path):
    write_model(tmp_path / "model")
    code = (
        "import os; from fastmerge.conversion import convert;"
        f"convert({str(tmp_path / 'model')!r}, {str(tmp_path / 'm.gguf')!r}, tokenizer=False,"
        " progress=lambda *a: os.kill(os.getpid(), 9))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not (tmp_path / "m.gguf").exists()
    (left,) = leftovers_in(tmp_path)
    assert left.target == tmp_path / "m.gguf" and not left.in_use
    assert CliRunner().invoke(main, ["clean", str(tmp_path), "--yes"]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FastmergeError, match=r"pip install 'fastmerge\[gguf\]'"):
        convert(tmp_path / "model", tmp_path / "m.gguf")


def test_merge_says_how_to_get_a_gguf_file(tmp_path):
    write_model(tmp_path / "model")
    (tmp_path / "r.yml").write_text(f"merge_method: passthrough\nmodels: [{{model: {tmp_path / 'model'}}}]\n")
    result = CliRunner().invoke(main, ["merge", str(tmp_path / "r.yml"), str(tmp_path / "out.gguf")])
    assert result.exit_code != 0 and "then run fastmerge convert FOLDER" in result.output.replace("\n", " ")
