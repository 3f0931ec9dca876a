"""Float8 and FP4 against transformers' own functions: blocks, scales of every extent, stacked experts, gpt-oss."""

from __future__ import annotations

import pytest
import torch
from quantized_files import decode, write_case
from safetensors.torch import load_file

import fastmerge
from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.quantized import decoded
from fastmerge.errors import CheckpointError

FLOAT8 = torch.float8_e4m3fn


def only(tmp_path, stored, **config):
    """Return the single decoded tensor of a checkpoint."""
    checkpoint = decoded(open_checkpoint(write_case(tmp_path, stored, config)))
    (entry,) = checkpoint.tensors.values()
    return entry


def float8(*shape, generator):
    return torch.randn(shape, generator=generator).mul(3).to(FLOAT8)


def exponents(*shape, generator):
    return torch.randint(110, 140, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def dequantize():
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(finegrained, "Fp8Dequantize"):
        pytest.skip("this transformers has no Fp8Dequantize")
    return finegrained.Fp8Dequantize(None)._dequantize_one


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((256, 384), (2, 3)),  # DeepSeek's blocks
        ((96, 64), (1, 1)),  # the tensor
        ((96, 64), (96, 1)),  # rows
        ((96, 64), (96, 2)),  # groups
        ((3, 256, 128), (3, 2, 1)),  # stacked experts
        ((3, 40, 128), (3, 1, 1)),
        ((3, 40, 128), (3, 40, 1)),
        ((3, 40, 128), (3, 1, 128)),  # columns, as fused experts have them
    ],
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float8_e8m0fnu", "uint8"])
def test_float8_as_transformers(tmp_path, generator, dequantize, shape, grid, kind):
    dtype = getattr(torch, kind)
    codes = float8(*shape, generator=generator)
    if dtype.itemsize == 1:
        scales = exponents(*grid, generator=generator).view(dtype)
    else:
        scales = torch.rand(grid, generator=generator).to(dtype)
    entry = only(tmp_path, {"m.weight": codes, "m.weight_scale_inv": scales})
    wanted = dequantize(codes, scales)
    assert (entry.dtype.torch, entry.shape) == (wanted.dtype, wanted.shape)
    rows = wanted.reshape(-1, wanted.shape[-1])
    assert torch.equal(decode(entry), rows)
    assert torch.equal(decode(entry, 5, 71), rows[5:71])


@pytest.mark.parametrize("kind", [torch.int8, torch.float4_e2m1fn_x2])
def test_fp4_in_pairs_as_transformers(tmp_path, generator, dequantize, kind):
    codes = torch.randint(0, 256, (24, 64), generator=generator, dtype=torch.uint8).view(kind)
    scales = exponents(24, 4, generator=generator).view(torch.float8_e8m0fnu)
    entry = only(tmp_path, {"m.weight": codes, "m.scale": scales})
    assert entry.coded.format == "mxfp4" and entry.shape == (24, 128)
    assert torch.equal(decode(entry), dequantize(codes, scales))


def test_experts_of_gpt_oss_as_transformers(tmp_path, generator):
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks = torch.randint(0, 256, (3, 10, 4, 16), generator=generator, dtype=torch.uint8)
    scales = exponents(3, 10, 4, generator=generator)
    entry = only(tmp_path, {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales})
    wanted = mxfp4.convert_moe_packed_tensors(blocks, scales)
    assert (entry.dtype.torch, entry.shape) == (wanted.dtype, wanted.shape)
    rows = wanted.reshape(-1, wanted.shape[-1])
    assert torch.equal(decode(entry), rows)
    for first, last in ((0, 1), (7, 200), (127, 129), (250, 384)):
        assert torch.equal(decode(entry, first, last), rows[first:last])


def test_stacked_experts_of_gpt_oss_are_merged_one_by_one(tmp_path, generator):
    """TIES keeps a share of each expert, of codes as of what they decode to; with semantics mergekit, of the stack."""
    stored, plain, tuned = {}, {}, {}
    for name, rows, groups in (("gate_up_proj", 128, 1), ("down_proj", 32, 2)):
        name = f"model.layers.0.mlp.experts.{name}"
        blocks = torch.randint(0, 256, (3, rows, groups, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(119, 122, (3, rows, groups), generator=generator, dtype=torch.uint8)
        case = {f"{name}_blocks": blocks, f"{name}_scales": scales}
        entry = only(tmp_path / name, case)
        stored |= case
        plain[name] = decode(entry).view(entry.shape)
        tuned[name] = (plain[name].float() + 0.1 * torch.randn(entry.shape, generator=generator)).bfloat16()
    folders = {}
    for name, tensors in (("codes", stored), ("plain", plain), ("tuned", tuned)):
        write_case(tmp_path / name, tensors, {"model_type": "gpt_oss"})
        folders[name] = str(tmp_path / name)
    results = {}
    for base in ("codes", "plain"):
        for semantics in (None, "mergekit"):
            entry = {"model": folders["tuned"], "parameters": {"weight": 1, "density": 0.3}}
            recipe = {"merge_method": "ties", "base_model": folders[base], "models": [entry], "semantics": semantics}
            out = tmp_path / f"{base}-{semantics}"
            fastmerge.merge(recipe, out)
            assert fastmerge.verify(out).ok
            results[base, semantics] = load_file(out / "model.safetensors")
    for name in plain:
        one, whole = results["codes", None][name], results["codes", "mergekit"][name]
        assert torch.equal(one, results["plain", None][name])
        assert torch.equal(whole, results["plain", "mergekit"][name])
        assert not torch.equal(one, whole)


def test_cut_blocks_follow_the_config(tmp_path, generator):
    """DeepSeek's kv_a_proj has 576 rows: four blocks of 128 and one of 64."""
    codes, scales = float8(80, 40, generator=generator), torch.rand(3, 2, generator=generator)
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    entry = only(tmp_path, {"m.weight": codes, "m.weight_scale_inv": scales}, quantization_config=config)
    grown = scales.repeat_interleave(32, 0).repeat_interleave(32, 1)[:80, :40]
    assert torch.equal(decode(entry), codes.float() * grown)


def test_settings_of_the_language_model_count(tmp_path, generator):
    codes, scales = float8(80, 40, generator=generator), torch.rand(3, 2, generator=generator)
    inner = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    entry = only(tmp_path, {"m.weight": codes, "m.weight_scale_inv": scales}, text_config=inner)
    assert entry.coded.decoder.grid.height == 32


def test_scale_of_one_value_and_of_each_expert(tmp_path, generator):
    codes = float8(3, 4, 8, generator=generator)
    one = only(tmp_path / "one", {"w": codes, "w_scale": torch.tensor(0.5)})
    assert torch.equal(decode(one), codes.float().mul(0.5).view(12, 8))
    each = torch.tensor([0.5, 2.0, 4.0])
    found = only(tmp_path / "each", {"w": codes, "w_scale": each})
    assert torch.equal(decode(found), (codes.float() * each[:, None, None]).view(12, 8))


def test_float8_without_rows(tmp_path):
    entry = only(tmp_path, {"w": torch.ones(6).to(FLOAT8), "w_scale": torch.tensor([3.0])})
    assert torch.equal(decode(entry), torch.full((1, 6), 3.0))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"m.weight": torch.zeros(4, 4).to(FLOAT8)},
            r"1 tensors are float8_e4m3fn: codes without the scales.*m\.weight",
        ),
        ({"m.weight": torch.zeros(4, 4, dtype=torch.int8)}, r"1 tensors are int8"),
        ({"m.qweight": torch.zeros(4, 4, dtype=torch.int32)}, r"m\.qweight needs m\.scales, which is missing"),
        (
            {"m.weight": torch.zeros(4, 6).to(FLOAT8), "m.weight_scale": torch.ones(3, 4)},
            r"m\.weight_scale has shape \[3, 4\], which does not fit \[4, 6\]",
        ),
        (
            {"m.weight_packed": torch.zeros(4, 8, dtype=torch.uint8), "m.weight_scale": torch.ones(4, 1).to(FLOAT8)},
            "is NVFP4 without m.weight_global_scale",
        ),
        ({"m.W_q": torch.zeros(4, 4, dtype=torch.uint8)}, "codes of HQQ, which is not read"),
        ({"m.trellis": torch.zeros(4, 4, dtype=torch.int16)}, "codes of EXL3, which is not read"),
        (
            {"x_blocks": torch.zeros(2, 3, 16, dtype=torch.uint8), "x_scales": torch.zeros(2, 3, dtype=torch.uint8)},
            r"x_blocks is uint8 \[2, 3, 16\], expected uint8 \[experts, out, groups, 16\]",
        ),
        (
            {
                "m.weight": torch.zeros(4, 4).to(FLOAT8),
                "m.weight_scale": torch.ones(1),
                "m.weight_packed": torch.zeros(4, 8, dtype=torch.uint8),
            },
            "a second time",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, stored, message):
    with pytest.raises(CheckpointError, match=message):
        decoded(open_checkpoint(write_case(tmp_path, stored, {})))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "aqlm"}, "quantized by aqlm"),
        ({"quant_method": "torchao"}, "quantized by torchao"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:llm"}, "auto-round in the layout"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {}}}}, "are rotated"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, "are sparse-bitmask"),
    ],
)
def test_methods_that_are_not_read_are_named(tmp_path, section, message):
    stored = {"m.weight": torch.zeros(4, 4).to(FLOAT8), "m.weight_scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match=message):
        decoded(open_checkpoint(write_case(tmp_path, stored, {"quantization_config": section})))


def test_small_integers_that_are_no_weights_stay(tmp_path):
    stored = {
        "mask": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "position_ids": torch.arange(4, dtype=torch.int32),
        "m.weight": torch.ones(2, 2),
    }
    checkpoint = decoded(open_checkpoint(write_case(tmp_path, stored, {})))
    assert checkpoint.tensors.keys() == stored.keys() and not checkpoint.quantized
