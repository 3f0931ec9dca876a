"""Make tests/data/distributed: what four processes of torch save of tensors that are cut along one and two dimensions.

    python tests/support/make_distributed.py

Two steps of a run as torch.distributed.checkpoint saves them, and one as its HuggingFaceStorageWriter does. The values
follow from the names (``state``), so that tests have them without torch's readers.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parents[1] / "data" / "distributed"
PROCESSES = 4
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
KINDS = {
    "model.embed_tokens.weight": ((7, 6), torch.bfloat16),  # uneven: 2, 2, 2 and 1 rows
    Q_PROJ: ((6, 6), torch.bfloat16),
    EXPERTS: ((3, 4, 6), torch.float32),
    "model.norm.weight": ((6,), torch.float16),
    "model.one.weight": ((1, 6), torch.float32),  # three of the processes have nothing
    "model.layers.0.scale": ((), torch.float32),
    "model.count": ((5,), torch.int64),
    "model.empty": ((0, 6), torch.float32),
}


def state(step: int) -> dict[str, torch.Tensor]:
    """Return the model at a step."""
    tensors = {}
    for place, (name, (shape, dtype)) in enumerate(KINDS.items()):
        count = torch.Size(shape).numel()
        tensors[name] = (((torch.arange(count) * 37 + 11 * step + place) % 101 - 50) / 16).to(dtype).reshape(shape)
    return tensors


def save_parts(folder: Path, tensors: dict[tuple[str, ...], torch.Tensor], rows: list[int]) -> None:
    """Save tensors by the keys that lead to them, each in parts of so many rows, without DCP's planner."""
    from fastmerge.checkpoint.distributed.chunks import Part
    from fastmerge.checkpoint.distributed.describing import Description

    description = Description()
    folder.mkdir()
    with open(folder / "__0_0.distcp", "wb") as file:
        for path, tensor in tensors.items():
            name, firsts = ".".join(path), [sum(rows[:k]) for k in range(len(rows))]
            parts = [Part((at, 0), (count, tensor.shape[1])) for at, count in zip(firsts, rows, strict=True)]
            description.tensor(name, path, tensor.dtype, tensor.shape, parts)
            for part, values in zip(parts, tensor.split(rows), strict=True):
                start = file.tell()
                torch.save(values.clone(), file)
                description.place(name, part.offsets, "__0_0.distcp", start, file.tell() - start)
    (folder / ".metadata").write_bytes(description.pickled())


def save(rank: int, port: int) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    os.chdir(DATA)  # what is saved names its folder as it was given
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    line, square = init_device_mesh("cpu", (PROCESSES,)), init_device_mesh("cpu", (2, 2))
    cuts = {Q_PROJ: (square, [Shard(0), Shard(1)]), EXPERTS: (square, [Shard(1), Shard(2)])}
    for step in (1, 2):
        own = {}
        for name, tensor in state(step).items():
            mesh, placement = cuts.get(name, (line, [Shard(0) if tensor.dim() else Replicate()]))
            plain = name in ("model.count", "model.empty")
            own[name] = tensor if plain else distribute_tensor(tensor, mesh, placement)
        moments = {"exp_avg": own["model.norm.weight"]}
        whole = {"app": {"model": own, "optim": {"state": {"model.norm.weight": moments}}, "step": step}}
        dcp.save(whole, checkpoint_id=f"step-{step}")
    dcp.save(own, storage_writer=HuggingFaceStorageWriter("hf-2", save_distributed=True))
    dist.destroy_process_group()


if __name__ == "__main__":
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 29613
    torch.multiprocessing.start_processes(save, args=(port,), nprocs=PROCESSES)
