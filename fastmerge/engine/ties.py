"""The last look at an output before it gets its name: a head that the config ties to the embedding has its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..checkpoint.layers import TEXT_CONFIGS
from ..errors import Refused
from ..plan.models import is_head, is_vocabulary
from ..plan.types import Plan, TextFile
from .checksums import Sums


def check_ties(plan: Plan, checksums: Mapping[str, Sums]) -> None:
    """Raise Refused where the output holds a head that differs from every embedding though its config ties it.

    By the checksums of the tensors, which were made while they were written.
    """
    file = plan.files.get("config.json")
    config = json.loads(file.text) if isinstance(file, TextFile) else {}
    levels = [level for level in (config, *(config.get(key) for key in TEXT_CONFIGS)) if isinstance(level, dict)]
    said = [level["tie_word_embeddings"] for level in levels if "tie_word_embeddings" in level]
    if not said or not all(said):
        return
    embeddings = [o for o in plan.outputs if is_vocabulary(o.name) and not is_head(o.name)]
    for head in [output for output in plan.outputs if is_head(output.name)]:
        alike = [o for o in embeddings if (o.dtype, o.shape) == (head.dtype, head.shape)]
        if alike and all(checksums[o.name].output != checksums[head.name].output for o in alike):
            raise Refused(
                f"{head.name}: differs from {alike[0].name}, to which the config of the output ties it; "
                "say tie_word_embeddings: false in the configs of the models that have a head of their own"
            )
