"""Writes ``tests/data/vocabulary/mergekit.json``: what mergekit 0.1.5 makes of ``vocabularies.RECIPES``.

Run it with FASTMERGE_MERGEKIT_PYTHON naming an interpreter that has mergekit 0.1.5.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mergekit_peer import VERSION, merge_all
from vocabularies import RECIPES, rows_of, save_word_models

TARGET = Path(__file__).resolve().parents[1] / "data" / "vocabulary" / "mergekit.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_word_models(folder)
        pairs = {}
        for case, recipe in RECIPES.items():
            for model in "abcd":
                for end in "},\n":
                    recipe = recipe.replace(f": {model}{end}", f": {folder / model}{end}")
            (folder / f"{case}.yml").write_text(recipe)
            pairs[case] = (folder / f"{case}.yml", folder / "out" / case)
        errors = {case: error for case, error in merge_all(pairs).items() if error}
        assert not errors, errors
        made = {
            case: {
                "vocab_size": json.loads((out / "config.json").read_text())["vocab_size"],
                "rows": rows_of(out),
            }
            for case, (_, out) in pairs.items()
        }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps({"mergekit": VERSION, "cases": made}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
