"""Runs mergekit's own functions in its interpreter: ``python _mergekit_worker.py THREADS DEVICE``.

Each line of standard input is a JSON object. ``load`` names a safetensors file of the inputs 0, 1, ..., which it reads
and removes. Without, it asks for a run with the arguments of ``merge_tensors``, answered with the seconds that it took;
``save`` names a file for the result ``merged`` and the masks that were drawn, ``mask0``, ... in their order.
"""

import json
import sys
import time
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


def on_wall(run):
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def on_device(run):
    """The clock of ``benchmarks/_bench.py`` (``on_device``): the device is busy until the host has launched ``run``."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(2_000_000)
    start.record()
    result = run()
    stop.record()
    stop.synchronize()
    return result, 1e-3 * start.elapsed_time(stop)


def recorded(drawn):
    """Return ``torch.bernoulli`` with its results noted."""
    draw = torch.bernoulli

    def record(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    return record


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    device = torch.device(sys.argv[2])
    clock = on_device if device.type == "cuda" else on_wall
    tensors = []
    for line in sys.stdin:
        request = json.loads(line)
        if path := request.get("load"):
            # Clones are ordinary memory; what load_file returns is mapped from the file.
            found = load_file(path)
            tensors = [found[str(i)].clone().to(device) for i in range(len(found))]
            del found
            Path(path).unlink()
            print(0, flush=True)
            continue
        inputs = tensors[: request["inputs"]]
        if request["columns"] and inputs[0].dim() == 1:
            inputs = [tensor.view(-1, request["columns"]) for tensor in inputs]

        def run(inputs=inputs, request=request):
            return merge_tensors(
                inputs, request["method"], parameters=request["parameters"], base_index=request["base_index"]
            )

        drawn, draw = [], torch.bernoulli
        if request["save"]:
            torch.manual_seed(0)
            torch.bernoulli = recorded(drawn)
        merged, seconds = clock(run)
        torch.bernoulli = draw
        if request["save"]:
            masks = {f"mask{i}": mask.contiguous().cpu().to(torch.uint8) for i, mask in enumerate(drawn)}
            save_file({"merged": merged.contiguous().cpu(), **masks}, request["save"])
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
