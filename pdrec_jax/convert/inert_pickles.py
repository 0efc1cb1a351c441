"""Follows the pickle inside a file of torch without running any of it.

`pickletools` (standard library) takes a pickle apart into instructions and executes none. This
module follows them with values of its own: a global that a pickle names becomes a `Global`, which
holds two strings, and a call of it becomes a `Call`, which holds its arguments. Nothing is imported
and nothing is called, whatever the pickle names.
"""

from __future__ import annotations

import dataclasses
import pickletools
from typing import Any

from pdrec_jax.data.columns import one_line
from pdrec_jax.errors import UserError

_MAX_INSTRUCTIONS = 5_000_000


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asks for."""

    module: str
    name: str


@dataclasses.dataclass(eq=False)
class Call:
    """What a pickle would have made by calling something.

    Attributes:
        function: what it names.
        arguments: what it would have been called with.
        state: what would then have been put into its attributes.
        items: what would then have been put into it by key.
    """

    function: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def names(self, functions: frozenset[Global]) -> bool:
        """Whether one of some functions would have been called."""
        return isinstance(self.function, Global) and self.function in functions


@dataclasses.dataclass(frozen=True)
class Persistent:
    """A thing outside the pickle: for torch, the numbers of a tensor."""

    value: Any


class _Mark:
    """Where an open group begins."""


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_WORDS = """BININT BININT1 BININT2 INT LONG LONG1 LONG4 FLOAT BINFLOAT BINUNICODE SHORT_BINUNICODE
BINUNICODE8 UNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING STRING BYTEARRAY8"""
_VALUES = frozenset(_WORDS.split())
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ORDERED = Global("collections", "OrderedDict")


def follow(data: bytes, where: str) -> Any:
    """The value that a pickle describes.

    Args:
        data: the pickle, of any protocol.
        where: its name, for errors.

    Returns:
        Plain values, and in place of everything else `Global`, `Call` and `Persistent`. An
        `OrderedDict` is a dictionary.

    Raises:
        UserError: broken, cut short or too long.
    """
    machine = _Machine()
    count = 0
    try:
        for code, argument, _ in pickletools.genops(data):
            count += 1
            if count > _MAX_INSTRUCTIONS:
                raise UserError(f"{where}: a pickle of too many instructions")
            machine.step(code.name, argument)
        return machine.result()
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{where}: a broken pickle ({one_line(error)})") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise ValueError("one value is expected at its end")
        return self.stack[0]

    def group(self) -> list[Any]:
        """The values since the last mark, which are taken off with it."""
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("a group ends that did not begin")

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            values = tuple(stack.pop() for _ in range(count))
            stack.append(values[::-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK":
            self.group()
        else:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """Follows an instruction that puts values together or asks for a name."""
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self.group()))
        elif name == "LIST":
            stack.append(self.group())
        elif name == "FROZENSET":
            stack.append(frozenset(map(_plain, self.group())))
        elif name == "DICT":
            stack.append(_paired(self.group()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else self.group()
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
            elif isinstance(stack[-1], set):
                stack[-1].update(map(_plain, values))
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.group()
            filled = stack[-1].items if isinstance(stack[-1], Call) else stack[-1]
            filled.update(_paired(values))
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(Global(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            # Not made text: that of a list which holds another one twice, and so on, has no end.
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("a name that is no text is not read")
            stack.append(Global(module, attribute))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()
            arguments, function = stack.pop(), stack.pop()
            given = arguments if isinstance(arguments, tuple) else ()
            stack.append({} if function == _ORDERED and not given else Call(function, given))
        elif name in ("OBJ", "INST"):
            values = self.group()
            if name == "OBJ":
                stack.append(Call(values[0], tuple(values[1:])))
            else:
                stack.append(Call(Global(*argument.partition(" ")[::2]), tuple(values)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Call):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(Persistent(stack.pop()))
        else:
            raise ValueError(f"{name} is not read")


def _paired(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_plain, values[::2]), values[1::2], strict=True))


def _plain(key: Any) -> Any:
    """A key as it is; none that holds others, whose hash may take as deep a stack as they are.

    Nor a number of more than 64 bits: as many as one likes of those have the same hash.
    """
    if not isinstance(key, str | int | float | bytes | None):
        raise ValueError(f"a key of type {type(key).__name__} is not read")
    if isinstance(key, int) and key.bit_length() > 64:
        raise ValueError("a key of more than 64 bits is not read")
    return key
