"""Faults that no call on a file shows: workers that end, memory that is gone, GPUs that fail, names in another case."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

from .children import Fault
from .world import Broken, World


def worker_ends(error: Callable[[], BaseException]) -> Callable[[World, Random], str]:
    """Let a worker be ended by an exception in the middle of its work."""

    def attempt(world: World, dice: Random) -> str:
        at = dice.randint(1, 8)

        def setup() -> None:
            from fastmerge.engine.files import OutputFiles

            write, count = OutputFiles.write, itertools.count(1)

            def ending(self, *arguments):
                if next(count) == at:
                    raise error()
                return write(self, *arguments)

            OutputFiles.write = ending  # type: ignore[method-assign]

        return world.attempt(Fault(), dice.random() < 0.5, setup)

    return attempt


def gpu_fails(world: World, dice: Random) -> str:
    """Compute on an accelerator of the tests, which fails at some copy and ever after, as GPUs do."""
    at = dice.randint(1, 12)

    def setup() -> None:
        import mirrors
        import pytest

        count = itertools.count(1)

        def failing(function):
            def call(*arguments):
                if next(count) >= at:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")
                return function(*arguments)

            return call

        mirrors.compute_on_mirrors(pytest.MonkeyPatch())
        mirrors.MirrorQueue.copy = failing(mirrors.MirrorQueue.copy)
        mirrors.MirrorQueue.wait = failing(mirrors.MirrorQueue.wait)
        mirrors.MirrorDriver.unpin = failing(mirrors.MirrorDriver.unpin)

    return world.attempt(Fault(), dice.random() < 0.5, setup)


def input_in_another_case(world: World, dice: Random) -> str:
    """Let the recipe name the target as an input, in other letters, where the file system makes no difference."""
    world.prepare(replace=True)
    recipe = world.inputs / "case.yml"
    name = dice.choice(("MERGED", "Merged", "merged"))
    recipe.write_text(world.recipe.read_text().replace(f"{world.inputs}/model1", f"{world.outputs}/{name}"))
    ended = world.merge(Fault(), "--overwrite", recipe=recipe, setup=lambda: world.machine.fold(world.outputs))
    recipe.unlink()
    if ended.status == 0 or "is not replaced" not in ended.text:
        raise Broken(f"an input was replaced, status {ended.status}: {ended.text}")
    how = world.outcome(ended)
    world.check(ended, replace=True)
    return how
