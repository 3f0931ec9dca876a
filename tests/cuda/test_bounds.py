"""No kernel reads or writes outside of its tensors: the emulated extension, with AddressSanitizer on every access."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cuda_emulation
import pytest

# Runs every operation on tensors that end where their memory ends, then one call that goes a vector too far.
SCRIPT = """
import random, sys
import torch
sys.path[:0] = sys.argv[2:]
import cuda_emulation
from kernel_cases import CASES, Draw
from fastmerge import kernels
from fastmerge.kernels import _cuda, _native

module = cuda_emulation.load(sys.argv[1])
_cuda._load = lambda: (module, None)
kernels._registry.PREFERENCE["cpu"] = ("cuda", "reference")
rng, generator = random.Random(), torch.Generator()
for name, case in CASES.items():
    if "cuda" in kernels.OPERATIONS[name].implementations:
        for numel in (1, 7, 129, 904, 4096, 16389):
            for count in (1, 3, 6):
                run = case(Draw(rng, generator, numel, count))
                with kernels.use_backend("cuda"):
                    run()
print("within bounds", flush=True)
out, tensor = torch.zeros(64), torch.zeros(16)
ints, floats = _native.sums([kernels.SumJob(out, [tensor], [1.0])])
assert ints[2] == tensor.numel()
ints[2] = 24
module.weighted_sum(ints, floats, (0, 0))
"""


@pytest.mark.slow
def test_within_bounds(tmp_path, emulated):
    # What the sanitizer adds to the stack does not understand fibers.
    flags = ("-fsanitize=address", "--param=asan-stack=0")
    library = cuda_emulation.build(tmp_path, flags, made=Path(emulated.__file__).parent)
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("needs the runtime of AddressSanitizer")
    environment = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, library, Path(cuda_emulation.__file__).parent, Path(__file__).parents[2]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(result.stdout, result.stderr[-4000:])
    assert result.stdout.strip() == "within bounds"
    assert "heap-buffer-overflow" in result.stderr and result.returncode != 0
