"""What lies in a folder that holds no weights that are read here: the format's name, and what turns it into one."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence

from .distributed import is_distributed
from .file_names import INDEX, SINGLE
from .placeholders import placeholder

_SAVE = "load it in the tool that made it and save it with save_pretrained"

# (name patterns, what they are, what to do), the most telling first; a folder's name ends with a slash.
_FORMATS: tuple[tuple[Sequence[str], str, str], ...] = (
    (
        ("zero/",),
        "a universal checkpoint of DeepSpeed",
        "take the ZeRO checkpoint that it was made from, and run its zero_to_fp32.py",
    ),
    (
        ("zero_pp_rank_*", "bf16_zero_pp_rank_*", "*_model_states.pt", "global_step*/", "zero_to_fp32.py"),
        "a DeepSpeed ZeRO checkpoint",
        "run its zero_to_fp32.py: python zero_to_fp32.py . OUT --safe_serialization",
    ),
    (
        ("mp_rank_*/", "iter_*/", "latest_checkpointed_iteration.txt", "release/"),
        "a Megatron checkpoint",
        "export it with Megatron-Bridge (AutoBridge.export_ckpt), or with Megatron-LM's tools/checkpoint/convert.py; "
        "to average it, run Megatron-LM with --ckpt-convert-format torch_dist, and name the iter_ folder",
    ),
    (
        ("common.pt",),
        "a Megatron checkpoint in zarr, or without its .metadata",
        "run Megatron-LM with --ckpt-convert-format torch_dist, or copy the whole folder",
    ),
    (
        ("model_world_size_*_rank_*.pt",),
        "an FSDP checkpoint of verl",
        "run python -m verl.model_merger merge --backend fsdp --local_dir . --target_dir OUT",
    ),
    (
        ("pytorch_model_fsdp_*/", "pytorch_model_fsdp*"),
        "an FSDP checkpoint of Accelerate",
        "name that folder or file; or run accelerate merge-weights on it",
    ),
    (
        (".metadata",),
        "a checkpoint of torch.distributed.checkpoint",
        "download it, and name its folder",
    ),
    (
        ("*.distcp",),
        "a part of a checkpoint of torch.distributed.checkpoint, without its .metadata",
        "copy the whole folder, .metadata too: its name begins with a dot",
    ),
    (
        ("shard-*-model-*.safetensors",),
        "shards of torch.distributed.checkpoint's HuggingFaceStorageWriter",
        "download them, and name their folder",
    ),
    (
        ("model_index.json",),
        "a pipeline of diffusers",
        "each of its parts is a model: name one of their folders, with its weights as model.safetensors",
    ),
    (
        ("diffusion_pytorch_model*",),
        "a model of diffusers",
        "rename its weights to model.safetensors (and the index, where there is one)",
    ),
    (
        ("unified.safetensors",),
        "an artifact of EMR",
        "name an expert that fastmerge emr restore ARTIFACT TASK made of it",
    ),
    (
        ("consolidated*.pth", "consolidated*.pt"),
        "Meta's own format",
        "run transformers' convert_llama_weights_to_hf.py, or take the repository's copy in the transformers format",
    ),
    (
        ("consolidated*.safetensors",),
        "Mistral's own format",
        "take the repository's copy in the transformers format, or run transformers' convert_mistral_weights_to_hf.py",
    ),
    (
        ("*.gguf",),
        "several models in GGUF",
        "name one of the files",
    ),
    (("flax_model*.msgpack", "*.msgpack"), "Flax weights", "load it in transformers 4 with from_flax=True and save it"),
    (("tf_model*.h5", "*.h5", "*.keras"), "TensorFlow weights", "load it in transformers 4 with from_tf=True and save"),
    (("*.nemo",), "a NeMo archive", "export it with NeMo's export_ckpt to the Hugging Face format"),
    (("*.onnx",), "ONNX", "take the model that it was exported from"),
    (("openvino_model*",), "OpenVINO", "take the model that it was exported from"),
    (("*.mlpackage/", "*.mlmodelc/"), "Core ML", "take the model that it was exported from"),
    (("rank*.safetensors", "rank*.engine"), "TensorRT-LLM", "take the model that it was built from"),
    (("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"), "an Orbax checkpoint of JAX", _SAVE),
    (("*.npz", "*.npy"), "NumPy arrays", "save them with safetensors.numpy.save_file as model.safetensors"),
    (("*.ckpt",), "a checkpoint of PyTorch Lightning", "save its state_dict's tensors as model.safetensors"),
    (("*.pth", "*.pt", "*.bin"), "a file of torch.save", "save its tensors as model.safetensors"),
    (("*.incomplete", "*.part", "*.crdownload", "*.aria2"), "an unfinished download", "finish or repeat the download"),
)


def describe(folder: str) -> Iterator[str]:
    """Yield what the folder holds in place of weights, each with its remedy; the most telling first."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    yield from _described(names, lambda name: placeholder(os.path.join(folder, name.rstrip("/"))))
    inner = [name for name in names if name.endswith("/") and holds_weights(os.path.join(folder, name))]
    if inner:
        yield f"the folder {inner[0]} in it holds weights (name that one)"


def describe_repository(files: Sequence[str]) -> Iterator[str]:
    """Yield what a repository's files are in place of weights, as ``describe``."""
    names = sorted({name.partition("/")[0] + "/" if "/" in name else name for name in files})
    yield from _described(names, lambda name: None)
    inner = sorted({os.path.dirname(name) for name in files if os.path.basename(name) in SINGLE + INDEX} - {""})
    if inner:
        yield f"the folder {inner[0]}/ in it holds weights (download the repository, and name that folder)"


def _described(names: Sequence[str], instead_of: Callable[[str], str | None]) -> Iterator[str]:
    shards = fnmatch.filter(names, "model-?????-of-?????.safetensors")
    if shards:
        yield f"{len(shards)} shards, {shards[0]} among them, without model.safetensors.index.json (download the index)"
    for patterns, what, remedy in _FORMATS:
        found = next((name for pattern in patterns for name in fnmatch.filter(names, pattern)), None)
        if found is not None:
            instead = instead_of(found)
            yield f"{found} {instead}" if instead else f"{found}: {what} ({remedy})"
            return
    others = [name for name in fnmatch.filter(names, "*.safetensors") if name not in shards]
    if others and not shards:
        yield f"{others[0]}: weights under another name (rename the file to model.safetensors)"


def holds_weights(folder: str) -> bool:
    """True for a folder with a checkpoint or an adapter in the Hugging Face layout, or one of DCP."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return bool(names & {*SINGLE, *INDEX, "adapter_config.json"}) or is_distributed(names)
