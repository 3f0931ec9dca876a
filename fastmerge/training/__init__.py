"""Averages while a model trains: its shards meet their averages where they lie, one launch a step.

from fastmerge.training import Averager, ema

averager = Averager(model, ema(0.999))
for batch in batches:
    ...
    optimizer.step()
    averager.update()
with averager.swapped():
    evaluate(model)
"""

from __future__ import annotations

from .averager import Averager
from .rules import Rule, ema, lawa, power, rule_of, swa, window

__all__ = ["Averager", "Rule", "ema", "lawa", "power", "rule_of", "swa", "window"]
