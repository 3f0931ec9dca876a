"""fastmerge: merge the weights of fine-tuned language models with fused kernels.

The names below are imported on first use, so that ``import fastmerge`` does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional, methods, plan
    from .adapters import merge_adapter_folders, merge_adapters
    from .analysis import analyze
    from .api import check, merge, verify, verify_recipe
    from .averaging import average, greedy_soup
    from .errors import FastmergeError, InvalidInput
    from .extraction import extract
    from .hub import push_to_hub
    from .methods import load_plugin
    from .reports.comparing import diff
    from .reports.inspecting import inspect
    from .reports.listing import list_methods
    from .state_dicts import merge_, merge_state_dicts
    from .training import Averager

__version__ = "0.1.0"

__all__ = [
    "Averager",
    "FastmergeError",
    "InvalidInput",
    "analyze",
    "average",
    "check",
    "diff",
    "extract",
    "functional",
    "greedy_soup",
    "inspect",
    "list_methods",
    "load_plugin",
    "merge",
    "merge_",
    "merge_adapter_folders",
    "merge_adapters",
    "merge_state_dicts",
    "methods",
    "plan",
    "push_to_hub",
    "verify",
    "verify_recipe",
]

_HOMES = {
    "Averager": "training",
    "FastmergeError": "errors",
    "InvalidInput": "errors",
    "analyze": "analysis",
    "average": "averaging",
    "check": "api",
    "diff": "reports.comparing",
    "extract": "extraction",
    "greedy_soup": "averaging",
    "inspect": "reports.inspecting",
    "list_methods": "reports.listing",
    "load_plugin": "methods",
    "merge": "api",
    "merge_": "state_dicts",
    "merge_adapter_folders": "adapters",
    "merge_adapters": "adapters",
    "merge_state_dicts": "state_dicts",
    "push_to_hub": "hub",
    "verify": "api",
    "verify_recipe": "api",
}


# Rooms that bear the name of a command: called, they are the function of that command.
_CALLED = {"methods": ("reports.listing", "list_methods"), "plan": ("api", "check")}


class _Called(ModuleType):
    """``fastmerge.plan(recipe)`` and ``fastmerge.methods()``; the modules hold what makes plans, and the methods."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        home, name = _CALLED[self.__name__.rpartition(".")[2]]
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)


class _Root(ModuleType):
    """This module: a room is set as its attribute when it is imported, by whomever."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLED and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root


def __getattr__(name: str) -> Any:
    if name == "functional" or name in _CALLED:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
