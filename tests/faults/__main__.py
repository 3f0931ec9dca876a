"""``python -m tests.faults``: break the machine under merges in every way, and count how they ended.

Whatever happens, the output has the same bytes at once or after the same command was run again, or there is one clear
error; inputs and an old output are intact. Needs gcc and Linux. ``--short`` tries each fault a few times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from random import Random, SystemRandom

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

OUTCOMES = ("the same bytes", "one error", "killed", "broken")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="try each fault a few times")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**31), help="of the places of the faults")
    parser.add_argument("--only", default="", help="part of the names of the faults that are tried")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from .children import build, why_not

    if why := why_not():
        print(why, file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="fastmerge-faults-") as folder:
        if "FASTMERGE_FAULTS" not in os.environ:  # once more, on the broken machine
            environment = os.environ | {"LD_PRELOAD": str(build(Path(folder))), "FASTMERGE_FAULTS": "1"}
            return os.spawnve(
                os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], environment
            )
        return _campaign(options, Path(os.path.realpath(folder)))


def _campaign(options: argparse.Namespace, folder: Path) -> int:

    from .cases import CASES
    from .children import Machine
    from .world import Broken, World

    print(f"seed {options.seed}", file=sys.stderr)
    world = World(folder, Machine(folder))
    table: dict[str, dict[str, int]] = {}
    broken: list[str] = []
    for case in CASES:
        if options.only not in case.name:
            continue
        counts = table.setdefault(case.name, dict.fromkeys(OUTCOMES, 0))
        for i in range(case.few if options.short else case.tries):
            try:
                counts[case.attempt(world, Random(f"{options.seed} {case.name} {i}"))] += 1
            except Broken as error:
                counts["broken"] += 1
                broken.append(f"{case.name}, try {i}: {error}")
                print(f"BROKEN {broken[-1]}", file=sys.stderr)
        print(f"{case.name}: {counts}", file=sys.stderr)
    _show(table, broken, options)
    return 1 if broken else 0


def _show(table: dict[str, dict[str, int]], broken: list[str], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"seed": options.seed, "table": table, "broken": broken}))
        return
    columns = ("fault", "tries", *OUTCOMES)
    rows = [(name, sum(counts.values()), *counts.values()) for name, counts in table.items()]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, len(columns)))))
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    for text in broken:
        print(f"\nBROKEN {text}")


if __name__ == "__main__":
    sys.exit(main())
