"""mergekit's own tests: those of whole merges with fastmerge as what merges, or all with our kernels inside.

    FASTMERGE_MERGEKIT_PYTHON=PYTHON python tests/support/mergekit_cases.py [--patched] [ARCHIVE]

downloads the source archive of mergekit 0.1.5 from PyPI, runs its tests in an interpreter that has mergekit, and prints
what passes and what does not, with the reason. ``run_merge`` is replaced in the tests of whole merges; ``--patched``
runs every test twice, without and with ``fastmerge.integrations.mergekit.patch()``, and prints what fails only with it.
Nothing of mergekit is kept. What that interpreter lacks (pytest, fastmerge) it takes from this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
VERSION = "0.1.5"

FILES = {
    "test_basic_merges.py": "",
    "test_chat_template.py": "",
    "test_embedding_truncation.py": "test_truncation or precedence or crimes or independently or missing_tokenizer",
    "test_merge_dtypes.py": "yaml",
    "test_tokenizer.py": "",
    "test_vocabulary_axis.py": "phi",
}
"""The files whose tests merge folders, and which of their tests do: the others call functions of mergekit."""

_SIZE = "vocab_size of the output's config follows the cut tensors, so that transformers loads them; it is 10 there"
_TRUNCATION = "test_embedding_truncation.py::test_"
DIFFERENT = {
    **{
        f"{_TRUNCATION}truncation_preserves_donor_config[{method}]": _SIZE
        for method in ("linear", "slerp", "task_arithmetic")
    },
    **{f"{_TRUNCATION}truncation_copies_out_of_range_metadata[{copies}]": _SIZE for copies in (False, True)},
    **{
        f"{_TRUNCATION}default_and_allow_crimes_do_not_truncate[{allowed}]":
            "refused as it wants, but the words are other ones than mergekit's 'Tensor size mismatch'"
        for allowed in (False, True)
    },
    f"{_TRUNCATION}embedding_and_head_are_truncated_independently":
        "a model whose head has fewer rows than its embedding is refused: no loader takes it, nor what comes of it",
}  # fmt: skip
"""Tests that fail, and why that is meant."""

_RUN = """
import json, site, sys
site.addsitedir(sys.argv[1])
import pytest

class Results:
    seen = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("/")[-1]
        if report.failed:
            self.seen[name] = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)
        elif report.when == "call":
            self.seen.setdefault(name, "")

results = Results()
pytest.main(sys.argv[3:], plugins=[results])
json.dump(results.seen, open(sys.argv[2], "w"))
"""


class Unavailable(Exception):
    """The archive cannot be downloaded; with the reason."""


def run_cases(python: str, archive: Path | None = None, mode: str = "merge") -> dict[str, str]:
    """Run the tests and return for each what went wrong; empty for those that pass.

    Args:
        python:  an interpreter that has mergekit.
        archive: its source archive; None downloads it.
        mode:    ``merge`` runs those of whole merges by fastmerge, ``patched`` and ``own`` all of them by mergekit.
    Raises:
        Unavailable:  the archive cannot be downloaded.
        RuntimeError: the tests do not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with tarfile.open(archive or download(work)) as tar:
            tar.extractall(work, filter="data")
        tests = work / f"mergekit-{VERSION}" / "tests"
        (tests / "__init__.py").touch()
        (tests / "common.py").write_bytes((SUPPORT / "mergekit_common.py").read_bytes())
        (tests / "conftest.py").write_text("import tests.common\n")
        (tests.parent / "mergekit").rename(work / "unused")  # the tests are to see the one that is installed
        chosen = " or ".join(f"({file} and ({words}))" if words else file for file, words in FILES.items())
        files = FILES if mode == "merge" else sorted(path.name for path in tests.glob("test_*.py"))
        where, results = sysconfig.get_path("purelib"), work / "results.json"
        command = [python, "-c", _RUN, where, str(results), "-q", *(["-k", chosen] if mode == "merge" else [])]
        environment = os.environ | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1", "FASTMERGE_CASES": mode
        }  # fmt: skip
        done = subprocess.run(
            [*command, *(str(tests / file) for file in files)], cwd=tests.parent, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        print(done.stderr[done.stderr.rfind("fastmerge served") :] if mode == "patched" else "", end="")
        if not results.exists():
            raise RuntimeError((done.stderr or done.stdout)[-3000:])
        return json.loads(results.read_text())


def download(folder: Path) -> Path:
    """Return the source archive of mergekit, downloaded from PyPI."""
    command = ["-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "-d", str(folder)]
    done = subprocess.run([sys.executable, *command, f"mergekit=={VERSION}"], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"pip download mergekit=={VERSION}: {done.stderr.strip()[-500:]}")
    return folder / f"mergekit-{VERSION}.tar.gz"


def main() -> int:
    python = os.environ.get("FASTMERGE_MERGEKIT_PYTHON", sys.executable)
    patched = "--patched" in sys.argv
    archive = next((Path(argument) for argument in sys.argv[1:] if argument != "--patched"), None)
    return _print_patched(python, archive) if patched else _print_merges(python, archive)


def _print_merges(python: str, archive: Path | None) -> int:
    results = run_cases(python, archive)
    for name, error in results.items():
        outcome = f"FAIL {name}: {DIFFERENT.get(name, error)}" if error else f"pass {name}"
        print(outcome)
    failed = {name for name, error in results.items() if error}
    print(f"{len(results) - len(failed)} of {len(results)} pass; {len(failed & DIFFERENT.keys())} differ on purpose")
    return failed != DIFFERENT.keys()


def _print_patched(python: str, archive: Path | None) -> int:
    own, patched = (run_cases(python, archive, mode) for mode in ("own", "patched"))
    worse = {name: error for name, error in patched.items() if error and not own.get(name)}
    for name, error in worse.items():
        print(f"FAIL {name}: {error}")
    passed = [sum(not error for error in results.values()) for results in (own, patched)]
    print(f"{passed[0]} pass without the patch, {passed[1]} with it; {len(worse)} fail only with it")
    return bool(worse)


if __name__ == "__main__":
    raise SystemExit(main())
