"""Ranks of one merge: as threads of this process, or as processes with what a launcher says in their environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastmerge.engine.launched import Place
from fastmerge.engine.launched_ranks import LaunchedRanks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def places(count: int) -> list[Place]:
    """Return the places of ranks that meet at a free port."""
    port = free_port()
    return [Place(rank, count, rank, count, "127.0.0.1", port) for rank in range(count)]


def in_threads(count: int, work: Callable[[LaunchedRanks], Any], timeout: float = 60.0) -> list[Any]:
    """Return what ``work`` returns, or raises, on each of so many ranks."""
    results: list[Any] = [None] * count

    def be(place: Place) -> None:
        try:
            with LaunchedRanks(place, timeout) as ranks:
                results[place.rank] = work(ranks)
        except BaseException as error:
            results[place.rank] = error

    threads = [threading.Thread(target=be, args=(place,)) for place in places(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def in_processes(count: int, arguments: Sequence[Any], program: Sequence[str] = ("-m", "fastmerge")) -> list[tuple]:
    """Run a command as so many ranks; return exit status, standard output and standard error of each."""
    port = str(free_port())
    processes = []
    for rank in range(count):
        said = {
            "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)], env={**os.environ, **said}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    ended = []
    for process in processes:
        out, err = process.communicate()
        ended.append((process.returncode, out, err))
    return ended
