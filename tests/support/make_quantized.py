"""Writes ``tests/data/quantized``: tensors as quantizing libraries store them, and the values that these give back.

    python tests/support/make_quantized.py tests/data/quantized [CASE ...]

It needs compressed-tensors, gptqmodel, autoawq, bitsandbytes, mlx (mlx-cpu), nvidia-modelopt and, for ``OLD``, a
folder with compressed-tensors 0.9.4 in PYTHONPATH_OLD: not what the tests need. Every file holds the stored tensors,
``expected:NAME`` for each of the decoded ones, and in its metadata the config and the library's version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

GENERATOR = torch.Generator().manual_seed(20)
CASES = {}


def case(package):
    """Register a function that returns (stored tensors, decoded tensors, quantization config)."""

    def register(function):
        CASES[function.__name__] = (package, function)
        return function

    return register


def weights(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, generator=GENERATOR).mul(0.05).to(dtype)


def codes(low, high, *shape, dtype=torch.int32):
    return torch.randint(low, high, shape, generator=GENERATOR).to(dtype)


# compressed-tensors


def compressed(format_, rows=48, columns=96, dtype=torch.bfloat16, input_activations=None, **weight_args):
    """Quantize by the library's own observers and compressor; return stored and decoded tensors of module ``m``."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weight_args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=input_activations)
    weight = weights(rows, columns, dtype=dtype)
    groups = weight.float()
    if args.strategy in ("group", "tensor_group"):
        groups = groups.unflatten(-1, (-1, args.group_size))
        low, high = groups.amin(-1), groups.amax(-1)
    elif args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(groups, (0, -columns % width, 0, -rows % height))
        blocks = padded.unflatten(0, (-1, height)).unflatten(-1, (-1, width))
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.strategy == "channel":
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    else:
        low, high = groups.amin().reshape(1), groups.amax().reshape(1)
    state = {"weight": weight}
    extra = {}
    if format_ == "nvfp4-pack-quantized":
        from compressed_tensors.quantization.utils import generate_gparam

        extra["global_scale"] = state["weight_global_scale"] = generate_gparam(groups.amin(), groups.amax())
    scale, zero = calculate_qparams(low, high, args, **extra)
    state["weight_scale"] = scale if scale.dtype.itemsize == 1 else scale.to(dtype)
    if not args.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(format_)
    stored = compressor.compress(dict(state), scheme)
    decoded = compressor.decompress(dict(stored), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
    }
    return {f"m.{name}": tensor for name, tensor in stored.items()}, {"m.weight": decoded}, config


@case("compressed-tensors")
def ct_int4_group():
    return compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)


@case("compressed-tensors")
def ct_int4_group_asymmetric():
    return compressed(
        "pack-quantized", rows=44, num_bits=4, type="int", strategy="group", group_size=32, symmetric=False
    )


@case("compressed-tensors")
def ct_int4_channel_odd():
    return compressed("pack-quantized", rows=13, columns=45, num_bits=4, type="int", strategy="channel")


@case("compressed-tensors")
def ct_int8_channel_asymmetric():
    return compressed("pack-quantized", rows=22, num_bits=8, type="int", strategy="channel", symmetric=False)


@case("compressed-tensors")
def ct_int8_tensor():
    return compressed("pack-quantized", dtype=torch.float16, num_bits=8, type="int", strategy="tensor")


@case("compressed-tensors")
def ct_int3_group():
    return compressed("pack-quantized", num_bits=3, type="int", strategy="group", group_size=32, symmetric=False)


@case("compressed-tensors")
def ct_naive_int8_channel():
    return compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False)


@case("compressed-tensors")
def ct_naive_int8_group():
    return compressed("naive-quantized", num_bits=8, type="int", strategy="group", group_size=48)


@case("compressed-tensors")
def ct_float8_tensor():
    return compressed("float-quantized", num_bits=8, type="float", strategy="tensor")


@case("compressed-tensors")
def ct_float8_channel():
    return compressed("float-quantized", dtype=torch.float32, num_bits=8, type="float", strategy="channel")


@case("compressed-tensors")
def ct_float8_block():
    return compressed(
        "float-quantized", rows=50, columns=70, num_bits=8, type="float", strategy="block", block_structure=[32, 32]
    )


@case("compressed-tensors")
def ct_nvfp4():
    return compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16,
                      scale_dtype=torch.float8_e4m3fn)  # fmt: skip


@case("compressed-tensors")
def ct_mxfp4():
    return compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32,
                      scale_dtype=torch.uint8)  # fmt: skip


@case("compressed-tensors")
def ct_mxfp8():
    return compressed("mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32,
                      scale_dtype=torch.uint8)  # fmt: skip


# GPTQ


def gptq(bits, format_="gptq", ordered=True, groups=3, columns=96, rows=64):
    """Random codes in the layout of GPTQ; the values that gptqmodel's own layer gives for them."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    layer = TorchLinear(bits=bits, group_size=columns // groups, sym=False, desc_act=ordered, in_features=columns,
                        out_features=rows)  # fmt: skip
    words = torch.iinfo(torch.int32)
    for buffer in (layer.qweight, layer.qzeros):
        buffer.copy_(torch.randint(words.min, words.max + 1, buffer.shape, generator=GENERATOR))
    if format_ == "gptq":
        # No stored zero point is 2**bits - 1, which the library's addition of 1 does not expect.
        layer.qzeros.bitwise_and_({2: 0x44444444, 3: 0, 4: 0x77777777, 8: 0x7F7F7F7F}[bits])
    layer.scales.copy_(torch.rand(layer.scales.shape, generator=GENERATOR) * 0.01)
    order = torch.arange(columns) // (columns // groups)
    layer.g_idx.copy_(order[torch.randperm(columns, generator=GENERATOR)] if ordered else order)
    stored = {name: getattr(layer, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    if format_ == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    decoded = layer.dequantize_weight().T.contiguous()
    config = {"quant_method": "gptq", "bits": bits, "group_size": columns // groups, "desc_act": ordered, "sym": False}
    config["checkpoint_format"] = format_
    return {f"m.{name}": tensor for name, tensor in stored.items()}, {"m.weight": decoded}, config


for _bits in (2, 3, 4, 8):
    CASES[f"gptq_{_bits}_bits"] = ("gptqmodel", lambda bits=_bits: gptq(bits))
    CASES[f"gptq_v2_{_bits}_bits"] = ("gptqmodel", lambda bits=_bits: gptq(bits, "gptq_v2", ordered=False))


# AWQ


@case("autoawq")
def awq():
    where = Path(importlib.metadata.distribution("autoawq").locate_file("awq/utils/packing_utils.py"))
    spec = importlib.util.spec_from_file_location("packing_utils", where)
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    words = torch.iinfo(torch.int32)
    qweight = codes(words.min, words.max, 96, 5)
    qzeros = codes(words.min, words.max, 3, 5)
    scales = (torch.rand(3, 40, generator=GENERATOR) * 0.01).half()
    decoded = packing.dequantize_gemm(qweight, qzeros, scales, 4, 32).T.contiguous()
    stored = {"m.qweight": qweight, "m.qzeros": qzeros, "m.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return stored, {"m.weight": decoded}, config


# bitsandbytes


def four_bits(kind, shape, dtype, nested, block=64, storage=torch.uint8):
    import bitsandbytes.functional as functional

    packed, state = functional.quantize_4bit(
        weights(*shape, dtype=dtype),
        blocksize=block,
        quant_type=kind,
        compress_statistics=nested,
        quant_storage=storage,
    )
    # The kernel for processors takes rows for blocks; this one, and the one for GPUs, blocks of the flattened tensor.
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.backends.utils import _get_4bit_code

    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    code = _get_4bit_code(kind, packed.device)
    flat = packed.view(torch.uint8).reshape(-1)
    decoded = _dequantize_4bit_compute(flat, absmax, code, block, state.shape, state.dtype)
    if shape[-1] % block == 0:
        assert torch.equal(decoded, functional.dequantize_4bit(packed, state))
    stored = {"m.weight": packed} | {f"m.weight.{k}": t.contiguous() for k, t in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return stored, {"m.weight": decoded}, config


@case("bitsandbytes")
def bnb_nf4():
    return four_bits("nf4", (48, 96), torch.bfloat16, nested=False)


@case("bitsandbytes")
def bnb_nf4_nested():
    return four_bits("nf4", (300, 64), torch.bfloat16, nested=True)


@case("bitsandbytes")
def bnb_fp4_odd():
    return four_bits("fp4", (40, 25), torch.float16, nested=False)


@case("bitsandbytes")
def bnb_nf4_storage():
    return four_bits("nf4", (16, 48), torch.float32, nested=True, block=128, storage=torch.bfloat16)


@case("bitsandbytes")
def bnb_int8():
    import bitsandbytes.functional as functional

    packed, scales, _ = functional.int8_vectorwise_quant(weights(24, 40, dtype=torch.float16))
    decoded = functional.int8_vectorwise_dequant(packed, scales)
    stored = {"m.weight": packed, "m.SCB": scales, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, {"m.weight": decoded}, {"quant_method": "bitsandbytes", "load_in_8bit": True}


# MLX


def mlx(bits=4, group=32, dtype="bfloat16", mode="affine", shape=(24, 96)):
    import mlx.core as mx

    kind = getattr(torch, dtype)
    weight = mx.array(weights(*shape, dtype=torch.float32).numpy()).astype(getattr(mx, dtype))
    parts = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    decoded = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode)

    def tensor(array):
        if array.dtype in (mx.uint32, mx.uint8):
            import numpy

            return torch.from_numpy(numpy.array(array))
        return torch.tensor(array.astype(mx.float32).tolist()).to(kind if array.dtype != mx.float32 else torch.float32)

    stored = {f"m.{name}": tensor(a) for name, a in zip(("weight", "scales", "biases"), parts, strict=False)}
    config = {"group_size": group, "bits": bits} | ({} if mode == "affine" else {"mode": mode})
    return stored, {"m.weight": tensor(decoded)}, config


for _bits, _group, _dtype in (
    (2, 32, "bfloat16"), (3, 32, "bfloat16"), (4, 96 // 3, "float16"), (5, 32, "float32"), (6, 32, "float16"),
    (8, 32, "bfloat16"),
):  # fmt: skip
    CASES[f"mlx_{_bits}_bits"] = ("mlx", lambda b=_bits, g=_group, d=_dtype: mlx(b, g, d))
CASES["mlx_mxfp4"] = ("mlx", lambda: mlx(4, 32, mode="mxfp4"))
CASES["mlx_mxfp8"] = ("mlx", lambda: mlx(8, 32, mode="mxfp8"))
CASES["mlx_nvfp4"] = ("mlx", lambda: mlx(4, 16, mode="nvfp4"))
CASES["mlx_experts"] = ("mlx", lambda: mlx(4, 32, shape=(3, 8, 64)))


# modelopt


@case("nvidia-modelopt")
def modelopt_nvfp4():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    quantized, scales, second = NVFP4QTensor.quantize(weights(48, 96), 16)
    decoded = quantized.dequantize(dtype=torch.bfloat16, scale=scales, double_scale=second, block_sizes={-1: 16})
    stored = {"m.weight": quantized._quantized_data, "m.weight_scale": scales, "m.weight_scale_2": second}
    stored["m.input_scale"] = torch.tensor(0.02)
    return stored, {"m.weight": decoded}, {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def main(folder: Path, chosen: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, make) in CASES.items():
        if chosen and name not in chosen:
            continue
        stored, decoded, config = make()
        written = {**stored, **{f"expected:{key}": tensor for key, tensor in decoded.items()}}
        version = f"{package} {importlib.metadata.version(package)}"
        key = "quantization" if package == "mlx" else "quantization_config"
        metadata = {"made_by": version, "config": json.dumps({key: config})}
        save_file({key: t.detach().clone().contiguous() for key, t in written.items()},
                  folder / f"{name}.safetensors", metadata=metadata)  # fmt: skip
        print(name, version, os.path.getsize(folder / f"{name}.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
