"""Merges by mergekit's own functions, in its interpreter: ``python mergekit_worker.py FOLDER``.

``FOLDER/requests.json`` is a list of {name, method, parameters, base}; ``FOLDER/<name>.safetensors`` holds the inputs
0, 1, ..., the base first where there is one. ``FOLDER/<name>.out.safetensors`` gets the result, and the masks that
were drawn, in their order.
"""

import json
import sys
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


def main() -> None:
    folder = Path(sys.argv[1])
    draw = torch.bernoulli
    for request in json.loads((folder / "requests.json").read_text()):
        inputs = load_file(folder / f"{request['name']}.safetensors")
        drawn = []

        def record(*args, drawn=drawn, **kwargs):
            drawn.append(draw(*args, **kwargs))
            return drawn[-1]

        torch.bernoulli = record
        torch.manual_seed(0)
        out = merge_tensors(
            [inputs[str(i)] for i in range(len(inputs))], request["method"], parameters=request["parameters"],
            base_index=0 if request["base"] else None,
        )  # fmt: skip
        masks = {f"mask{i}": mask.contiguous().to(torch.uint8) for i, mask in enumerate(drawn)}
        save_file({"out": out.contiguous(), **masks}, folder / f"{request['name']}.out.safetensors")


if __name__ == "__main__":
    main()
