"""Instructions that a thread executes on the usual path through a kernel, from its machine code alone.

A path is told apart by what it must contain, so many times each: the float64 numbers of eight divisions, say, or the
products of Philox. Among the paths that contain that, the shortest is taken: rare turns, such as the vector of a break
index, are longer. Of a loop the path is that of one turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Other GPUs' code has other instructions where paths are looked for.
TARGET = 90
# Elements of a vector; and of 64M, instructions that an H200 issues per microsecond: 132 multiprocessors, four
# schedulers of 32 lanes each, 1.97 GHz.
VECTOR = 8
ELEMENTS = 64 << 20
SLOTS_PER_US = 132 * 4 * 32 * 1.97e3
# Share of the slots that a good kernel issues: 0.64 to 0.69 was measured, see RESULTS.md.
ISSUED = 0.75

_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\s*([^;]*);", re.MULTILINE)


@dataclass(frozen=True)
class Path:
    """What to look for in a kernel: ``must`` has how often patterns occur; ``loop`` asks for one turn of a loop.

    ``elements`` says of how many a thread executes it at a time, of each tensor.
    """

    kernel: str
    name: str
    must: Mapping[str, int] = field(default_factory=dict)
    loop: bool = False
    elements: int = VECTOR


def _merges(dtype: str) -> Iterator[Path]:
    quotients = {r"F2F\.F64\.F32": VECTOR}
    for n in (2, 3, 4):
        elected, summed = f"sparse_merge_kernel<{dtype}, 1, {n}>", f"sparse_merge_kernel<{dtype}, 0, {n}>"
        yield Path(elected, "top, divided", {r"FSETP.*\|R": n * VECTOR, **quotients})
        yield Path(elected, "random, divided", {r"IMAD\.WIDE\.U32": n * 20, **quotients})
        yield Path(elected, "masked, divided", {r"LDG\.E\.U8": n, **quotients})
        yield Path(summed, "all")


def _collections(dtype: str) -> Iterator[Path]:
    """Yield the paths of one of the models: csrc/cuda/select_collect.cu."""
    each = 32
    compared, stored = r"FSETP?\..*\|R", r"STS "
    for name, must in {
        "a model, counted": {compared: 2 * each},
        "a model, nothing gathered": {compared: 4 * each, stored: each},
        "a model, gathered": {compared: 4 * each, stored: each, r"STG\.E ": 1},
    }.items():
        yield Path(f"collect_kernel<{dtype}>", name, must, loop=True, elements=each)


def _grams() -> Iterator[Path]:
    """Yield a stage of every Gram kernel of 16-bit tensors, and of half of its threads where each half has a part."""
    for n in range(1, 17):
        kernel, pairs, copied = f"gram_staged_kernel<BFloat16, {n}>", n * (n + 1) // 2, {"LDGSTS": 1}
        rows = 8 if n <= 4 else 4
        if n <= 12:
            yield Path(kernel, "a stage", {"DFMA": rows * pairs, **copied}, loop=True, elements=rows)
        else:
            first = n - 4
            early = first * (first + 1) // 2
            for name, sums, deltas in ((f"the first {first}", early, first), ("the last 4", pairs - early, n)):
                must = {"DFMA": rows * sums, r"F2F\.F64\.F32": rows * deltas, **copied}
                yield Path(kernel, f"a stage, {name}", must, loop=True, elements=rows)


def _ranks() -> Iterator[Path]:
    """Yield the passes over a row that shared memory holds: csrc/cuda/rank_bins.cu."""
    kernel, held = "rank_bins_kernel<BFloat16, true>", {r"LDS\.128": 2}
    yield Path(kernel, "reads", {r"LDG\.E.*128": 2, r"STS\.128": 2}, loop=True)
    yield Path(kernel, "counts", {"ATOMS": VECTOR, **held}, loop=True)
    yield Path(kernel, "decides", {r"IMAD\.WIDE\.U32": 18, "LDS R": VECTOR, **held}, loop=True)
    yield Path(kernel, "codes of magnitudes", {r"LDS\.64": VECTOR, "STS ": 1, **held}, loop=True)
    yield Path(kernel, "counts a code", {r"LDS\.128": 4, "SHFL": 6}, loop=True, elements=128)


PATHS = (
    *_merges("BFloat16"),
    *_merges("Float16"),
    Path("weighted_sum_kernel<BFloat16>", "a turn of 4 tensors", {r"LDG\.E.*128": 4}, loop=True),
    *(path for dtype in ("BFloat16", "Float16", "float") for path in _collections(dtype)),
    *_ranks(),
    Path("norms_kernel<BFloat16, 3, 3, false>", "a row", {"LDGSTS": 1, r"IMAD\.WIDE\.U32": 3 * 20}, loop=True),
    Path("norms_kernel<BFloat16, 3, 4, false>", "a row", {r"LDG\.E\.U8": 3}, loop=True),
    Path("low_rank_kernel<true>", "two ranks", {"FMUL": 128, "FADD": 128}, loop=True, elements=64),
    *_grams(),
)


def length(sass: str, path: Path) -> int | None:
    """Return the instructions on a path, or None where there is none."""
    code = [(int(at, 16), bool(guard), op, arguments) for at, guard, op, arguments in _LINE.findall(sass)]
    place = {at: i for i, (at, *_) in enumerate(code)}
    follow: list[list[int]] = []
    back: list[tuple[int, int]] = []
    for i, (_, guard, op, arguments) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)\s*$", arguments) if op.startswith("BRA") else None
        to = place.get(int(target[1], 16)) if target else None
        # BRA.DIV leaves the usual path: where lanes of a warp have parted.
        branches = guard or op == "BRA.DIV" or re.match(r"\s*!?U?P", arguments)
        ends = (op.startswith("BRA") or op == "EXIT") and not branches
        follow.append([] if ends else [i + 1])
        if to is not None and to > i:
            follow[i].append(to)
        elif to is not None and to < i:
            back.append((to, i))
    if path.loop:
        ends = [turn for turn in back if turn[0] < turn[1]]
        return min(filter(None, (_shortest(code, follow, a, b, path.must) for a, b in ends)), default=None)
    stores = [i for i, (*_, op, _) in enumerate(code) if op.startswith("STG") and op.endswith("128")]
    return min(filter(None, (_shortest(code, follow, 0, store, path.must) for store in stores)), default=None)


def _shortest(
    code: list[tuple[int, bool, str, str]], follow: list[list[int]], begin: int, end: int, must: Mapping[str, int]
) -> int | None:
    """Return the least instructions from one to another, forward, with what it must contain."""
    patterns, most = [re.compile(pattern) for pattern in must], list(must.values())
    best: list[dict[tuple[int, ...], int]] = [{} for _ in range(end + 1)]
    best[begin][(0,) * len(most)] = 0
    for i in range(begin, end + 1):
        if not best[i]:
            continue
        text = f"{code[i][2]} {code[i][3]}"
        step = [int(pattern.match(text) is not None) for pattern in patterns]
        counts = int(code[i][2] != "NOP")
        here = {}
        for seen, cost in best[i].items():
            now = tuple(min(a + b, limit) for a, b, limit in zip(seen, step, most, strict=True))
            here[now] = min(cost + counts, here.get(now, cost + counts))
        best[i] = here
        for to in follow[i] if i < end else ():
            if to <= end:
                for seen, cost in here.items():
                    best[to][seen] = min(cost, best[to].get(seen, cost))
    return best[end].get(tuple(most))


def per_element(kernel: str, name: str, instructions: int) -> float:
    """Return the instructions per element of a path."""
    [elements] = {path.elements for path in PATHS if (path.kernel, path.name) == (kernel, name)}
    return instructions / elements


def issue_us(instructions: float) -> float:
    """Return the time of 64M elements, at so many instructions each, where nothing but issuing them limits it."""
    return ELEMENTS * instructions / SLOTS_PER_US / ISSUED
