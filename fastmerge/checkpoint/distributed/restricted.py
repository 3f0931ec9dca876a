"""A reader of pickles that runs nothing: of all opcodes those of plain data, of all names those in a table.

What a name stands for in the table is a class without behaviour (``Record``) or a function of this package. It is the
unpickler in Python: the one in C lets a pickle take memory by itself, with a large index of its memo.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

_PLAIN_NAMES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "BINPERSID",
)  # fmt: skip
_PLAIN = {getattr(pickle, name)[0] for name in _PLAIN_NAMES}


class Refused(ValueError):
    """The pickle holds what is not in the table."""


class Record:
    """Stands for an object of a class that is known by name: it has what the pickle says of it, and nothing else."""

    def __init__(self) -> None:
        self.state: Any = None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the object."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


class Named:
    """Stands for a function: ``make`` is called with the arguments in the pickle, which it checks."""

    def __init__(self, make: Callable[..., Any]):
        self.make = make


def read_pickle(
    data: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Return the data in a pickle.

    Args:
        names:      for (module, name) a subclass of ``Record``, a ``Named``, or a value.
        persistent: what a reference to something outside of the pickle gives.
    Raises:
        Refused:    another name, or an opcode that plain data does not need.
        ValueError: the pickle is damaged.
    """
    try:
        return _Unpickler(data, names, persistent).load()
    except Refused:
        raise
    except Exception as error:  # of whatever kind the damage leads to
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Unpickler(pickle._Unpickler):
    # Of the class in the standard library, whose types do not list them.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise Refused(f"it holds {module}.{name}, which is not loaded") from None

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused("it refers to something outside of itself")
        return self._persistent(pid)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise Refused("it calls what is no function")
        self.stack[-1] = function.make(*arguments)

    def _new_object(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if not (isinstance(kind, type) and issubclass(kind, Record)) or arguments != ():
            raise Refused("it makes an object in another way than its class does")
        self.append(kind())

    def _build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]).__mro__[-2] is not Record:
            raise Refused("it gives a state to what has none")
        self.stack[-1].state = state

    def _set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]
        # The hash of nested tuples can take for ever.
        if type(into) is not dict or len(items) % 2 or any(type(k) is tuple for k in items[::2]):
            raise Refused("it holds a dictionary of another kind")
        into.update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: method for code, method in pickle._Unpickler.dispatch.items() if code in _PLAIN},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new_object,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }
