"""Metadata in the headers of the inputs: names that tensors share are kept, the rest is said to be lost."""

from __future__ import annotations

from collections.abc import Sequence

from .findings import Findings, listed
from .models import OpenModel


def kept_aliases(donor: OpenModel, names: Sequence[str], findings: Findings) -> dict[str, str]:
    """Return further names of the output's tensors, as ``safetensors.torch.save_model`` writes them for shared ones.

    Other metadata of the donor's files (how it was trained, hashes of what it was) gets a note.
    """
    outputs = set(names)
    found = {key: value for file in donor.checkpoint.files for key, value in file.metadata.items() if key != "format"}
    aliases = {key: value for key, value in found.items() if value in outputs and key not in outputs}
    others = sorted(key for key, value in found.items() if value not in donor.tensors)
    if others:
        findings.note(f"metadata in the headers of {donor} is not taken over: {listed(others)}")
    return aliases
