"""Runs mergekit's own functions in mergekit's interpreter: ``python mergekit_worker.py TENSORS.safetensors THREADS``.

Each line of standard input asks for one run: a JSON object with the arguments of ``merge_tensors``; each is
answered with the seconds that it took. With ``save``, the result is written to that safetensors file.
"""

import json
import sys
import time

import torch
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    # Clones are ordinary memory; what load_file returns is mapped from the file.
    tensors = {name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        inputs = [tensors[str(i)] for i in range(request["inputs"])]
        start = time.perf_counter()
        merged = merge_tensors(
            inputs, request["method"], parameters=request["parameters"], base_index=request["base_index"]
        )
        seconds = time.perf_counter() - start
        if request["save"]:
            save_file({"merged": merged}, request["save"])
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
