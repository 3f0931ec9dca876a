"""Runs mergekit's own functions: ``python mergekit_worker.py TENSORS.safetensors THREADS DEVICE``, in its interpreter.

Each line of standard input asks for one run: a JSON object with the arguments of ``merge_tensors``; each is
answered with the seconds that it took. With ``save``, the result is written to that safetensors file.
"""

import json
import sys
import time

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


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    # Clones are ordinary memory; what load_file returns is mapped from the file.
    device = torch.device(sys.argv[3])
    tensors = {name: tensor.clone().to(device) for name, tensor in load_file(sys.argv[1]).items()}
    clock = on_device if device.type == "cuda" else on_wall
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        inputs = [tensors[str(i)] for i in range(request["inputs"])]
        if request["columns"] and inputs[0].dim() == 1:
            inputs = [tensor.view(-1, request["columns"]) for tensor in inputs]
        merged, seconds = clock(
            lambda inputs=inputs, request=request: merge_tensors(
                inputs, request["method"], parameters=request["parameters"], base_index=request["base_index"]
            )
        )
        if request["save"]:
            save_file({"merged": merged.cpu()}, request["save"])
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
