"""Files that are not what their names promise: pointers, dead links, web pages, other formats."""

from __future__ import annotations

import json

import pytest
from tiny_models import make_tensors, save_model

from fastmerge.checkpoint import open_checkpoint
from fastmerge.errors import CheckpointError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 4976698672\n"
NOT_A_FILE = {
    "lfs": (LFS, "is a pointer of Git LFS, not the file itself (run git lfs pull in its repository)"),
    "annex": ("/annex/objects/SHA256E-s1--0a.safetensors\n", "is a pointer of git-annex"),
    "page": ("\n<!DOCTYPE html>\n<html><head></head>", "is a web page"),
    "empty": ("", "is empty (download or save it again)"),
}


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    return str(caught.value)


@pytest.mark.parametrize("kind", NOT_A_FILE)
@pytest.mark.parametrize(
    "name", ["model-00002-of-00003.safetensors", "model.safetensors.index.json", "config.json", "pytorch_model.bin"]
)
def test_placeholders(tmp_path, kind, name):
    folder = save_model(tmp_path / "m", make_tensors(), shards=3)
    if name.endswith(".bin"):
        (folder / "model.safetensors.index.json").unlink()
    (folder / name).write_text(NOT_A_FILE[kind][0])
    message = refused(folder)
    assert f"{folder / name}: {NOT_A_FILE[kind][1]}" in message and "corrupt" not in message


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00002-of-00003.safetensors", "model.safetensors.index.json", "config.json"]
)
def test_links_to_nothing(tmp_path, name):
    folder = save_model(tmp_path / "m", make_tensors(), shards=1 if name == "model.safetensors" else 3)
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0a1b")
    assert f"{folder / name}: is a link to ../../blobs/0a1b, which does not exist" in refused(folder)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PK\x03\x04", "archive of PyTorch"),
        (b"GGUF\x03", "GGUF file"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x80\x02}", "pickle"),
    ],
)
def test_another_format_under_the_name(tmp_path, start, what):
    folder = save_model(tmp_path / "m", make_tensors())
    (folder / "model.safetensors").write_bytes(start + bytes(100))
    assert f"model.safetensors: is a{'n' if what[0] in 'aH' else ''} {what}" in refused(folder)


FORMATS = {
    "GGUF": ["config.json", "model-Q4_K_M.gguf", "model-Q8_0.gguf"],
    "Flax": ["flax_model.msgpack"],
    "TensorFlow": ["tf_model.h5"],
    "Meta": ["consolidated.00.pth", "params.json"],
    "Mistral": ["consolidated.safetensors", "params.json", "tekken.json"],
    "pipeline of diffusers": ["model_index.json", "unet/diffusion_pytorch_model.safetensors"],
    "model of diffusers": ["diffusion_pytorch_model.safetensors"],
    "Megatron": ["latest_checkpointed_iteration.txt", "iter_0001000/mp_rank_00/model_optim_rng.pt"],
    "DeepSpeed": ["latest", "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"],
    "Megatron-LM with --ckpt-convert-format torch_dist": ["metadata.json", "common.pt", "model.w/.zarray"],
    "universal checkpoint of DeepSpeed": ["zero/w/fp32.pt", "mp_rank_00_model_states.pt"],
    "verl.model_merger": ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "fsdp_config.json"],
    "without its .metadata": ["__0_0.distcp"],
    "merge-weights": ["pytorch_model_fsdp_0/__0_0.distcp"],
    "without model.safetensors.index.json": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    "under another name": ["my-lora.safetensors"],
    "unfinished download": ["model.safetensors.incomplete"],
    "the folder checkpoint-7/ in it": ["trainer_state.json", "checkpoint-7/model.safetensors"],
}


@pytest.mark.parametrize("what", FORMATS)
def test_formats_that_are_not_read(tmp_path, what):
    for name in FORMATS[what]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    message = refused(tmp_path)
    assert f"{tmp_path}: no weights; expected one of model.safetensors" in message
    assert what in message and "(" in message.partition("; found ")[2]


def test_formats_of_header_metadata(tmp_path):
    import torch
    from safetensors.torch import save_file

    offsets = json.dumps({"w": {"saved_offsets": [0, 0]}})
    for metadata, message in (
        ({"DCP_SHARDING_INFO": offsets, "format": "pt"}, "holds parts of tensors.*consolidate_safetensors_files"),
        ({"format": "flax"}, "layout of flax"),
        ({"format": "tf"}, "layout of tf"),
    ):
        save_file({"w": torch.ones(2, 2)}, tmp_path / "model.safetensors", metadata)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(tmp_path))
