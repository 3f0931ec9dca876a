"""EMR artifacts: several fine-tunes of one base in little more than the space of one (Huang et al. 2024).

    import fastmerge.emr

    fastmerge.emr.save("base", {"code": "org/coder", "math": "org/mathematician"}, "emr")
    experts = fastmerge.emr.load("emr")
    experts.apply_(model.state_dict(), "math")        # base weights become those of an expert, in place

A folder holds ``unified.safetensors`` (the unified delta, one for all), ``masks.safetensors`` (one bit per element and
task, as int32 words, lowest bit first) and ``emr.json`` (base, tasks, scales). The formulas are those of the merge
method ``emr``, which makes one expert from the checkpoints themselves, with the same bits.
"""

from __future__ import annotations

from .experts import Experts, load, restore
from .saving import save

__all__ = ["Experts", "load", "restore", "save"]
