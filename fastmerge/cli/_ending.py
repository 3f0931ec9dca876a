"""The end of a process that was one command: at once, without taking the interpreter apart module by module."""

from __future__ import annotations

import atexit
import os
import sys
import threading


def end(status: object) -> None:
    """End this process, with what was printed and what is to be done at its end; return where only Python can.

    Python would clear every module and free every object first, a sixth of the time of a small merge; the system does
    not need that. It is left to Python where threads, torch, a debugger or a profiler have work at the end.
    """
    if not isinstance(status, int | None) or _needs_python():
        return
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # the reader is gone, or the stream is closed: Python says so in its own way
        return
    os._exit((status or 0) & 0xFF)


def _needs_python() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12, used by profilers
    watched = sys.gettrace() or sys.getprofile() or (monitoring and any(map(monitoring.get_tool, range(6))))
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    return bool(watched or others or sys.flags.interactive or sys.flags.inspect or "torch" in sys.modules)
