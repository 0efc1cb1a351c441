"""Reads pickles of plain data without the library that could run what is in them.

A pickle is a program for a small stack machine. This reader knows the instructions that build
dictionaries, lists, tuples, integers and text, of all protocols; it has no instruction that looks
up a name or calls anything, so a pickle that wants to is refused at that byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdrec_jax.data.columns import unreadable
from pdrec_jax.errors import UserError

MAX_BYTES = 64 << 20
_MAX_OPEN = 1000  # groups that are begun and not finished, and values outside of all groups
# An instruction of one byte makes a container, or remembers a value, of a hundred bytes and more.
# The paper's files hold 12,171 of each at most.
_MAX_CONTAINERS = 100_000

_INTEGER = re.compile(rb"-?[0-9]{1,19}")
# What a pickle could ask for and does not get; only to name it in the error.
_REFUSED = {
    b"0": "POP",
    b"1": "POP_MARK",
    b"2": "DUP",
    b"B": "BINBYTES",
    b"C": "SHORT_BINBYTES",
    b"F": "FLOAT",
    b"G": "BINFLOAT",
    b"N": "NONE",
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"R": "REDUCE",
    b"S": "STRING",
    b"T": "BINSTRING",
    b"U": "SHORT_BINSTRING",
    b"b": "BUILD",
    b"c": "GLOBAL",
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x88": "NEWTRUE",
    b"\x89": "NEWFALSE",
    b"\x8e": "BINBYTES8",
    b"\x8f": "EMPTY_SET",
    b"\x90": "ADDITEMS",
    b"\x91": "FROZENSET",
    b"\x92": "NEWOBJ_EX",
    b"\x93": "STACK_GLOBAL",
    b"\x96": "BYTEARRAY8",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}


def read_plain_pickle(path: Path) -> Any:
    """Reads one pickled value from a file.

    Args:
        path: file of at most 64 MiB.

    Returns:
        Dictionaries, lists, tuples, integers and text, nested.

    Raises:
        UserError: the file cannot be read, is no pickle, or asks for anything else; with the byte
            and the instruction.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES >> 20} MiB, too large for a pickled log")
    return parse_plain_pickle(data, str(path))


def parse_plain_pickle(data: bytes, where: str) -> Any:
    """Reads one pickled value.

    Args:
        data: the pickle, of protocol 0 to 5.
        where: its name, for errors.

    Returns:
        As `read_plain_pickle`.

    Raises:
        UserError: as `read_plain_pickle`.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (_Refusal, IndexError, struct.error, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, _Refusal) else "broken or cut short"
        raise UserError(f"{where}: byte {machine.instruction}: {reason}") from error


class _Refusal(ValueError):
    """A pickle asks for what it does not get."""


class _Machine:
    """The stack machine: `stack` holds finished values, `marks` where open groups begin."""

    def __init__(self, data: bytes):
        self.data = data
        self.instruction = 0  # place of the one that runs
        self.next = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def run(self) -> Any:
        table = _INSTRUCTIONS
        while True:
            self.instruction = self.next
            code = self.data[self.next : self.next + 1]
            self.next += 1
            if code == b".":
                break
            work = table.get(code)
            if work is None:
                raise _Refusal(_complaint(code))
            work(self)
        if len(self.stack) != 1 or self.marks:
            raise _Refusal("one finished value is expected at the end")
        return self.stack[0]

    def take(self, size: int) -> bytes:
        end = self.next + size
        if end > len(self.data):
            raise _Refusal("broken or cut short")
        found = self.data[self.next : end]
        self.next = end
        return found

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.next)
        if end < 0:
            raise _Refusal("broken or cut short")
        return self.take(end + 1 - self.next)[:-1]

    def push(self, value: Any) -> None:
        if not self.marks and len(self.stack) >= _MAX_OPEN:
            raise _Refusal(f"more than {_MAX_OPEN} values that are not put together")
        self.stack.append(value)

    def hold(self, value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
        self.containers += 1
        if self.containers > _MAX_CONTAINERS:
            raise _Refusal(f"more than {_MAX_CONTAINERS} lists, tuples and dictionaries")
        self.push(value)

    def pop(self) -> Any:
        # Nothing below the innermost mark may be reached: it belongs to a group that is open.
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refusal("a value is missing")
        return self.stack.pop()

    def mark(self) -> None:
        if len(self.marks) >= _MAX_OPEN:
            raise _Refusal(f"more than {_MAX_OPEN} values within each other")
        self.marks.append(len(self.stack))

    def group(self) -> list[Any]:
        if not self.marks:
            raise _Refusal("a group ends that did not begin")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def container(self, kind: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refusal("a value is missing")
        if type(self.stack[-1]) is not kind:
            raise _Refusal(f"a {kind.__name__} to fill is expected")
        return self.stack[-1]

    def remember(self, key: int) -> None:
        value = self.pop()
        self.memo[key] = value
        if len(self.memo) > _MAX_CONTAINERS:
            raise _Refusal(f"more than {_MAX_CONTAINERS} values to remember")
        self.push(value)

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise _Refusal(f"value {key} is asked for before it is there")
        self.push(self.memo[key])

    def long(self, size: int) -> None:
        if not 0 <= size <= 8:
            raise _Refusal("an integer of more than 8 bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8"))

    def decimal(self, digits: bytes) -> int:
        if not _INTEGER.fullmatch(digits):
            raise _Refusal(f"an integer is expected, not {digits[:20]!r}")
        return int(digits)

    def append(self, values: list[Any]) -> None:
        self.container(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        found = self.container(dict)
        if len(values) % 2:
            raise _Refusal("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (int, str):
                raise _Refusal(f"a key that is a {type(key).__name__}; integers or text expected")
            found[key] = value

    def two(self) -> list[Any]:
        value = self.pop()
        return [self.pop(), value]


def _complaint(code: bytes) -> str:
    if not code:
        return "broken or cut short"
    if code not in _REFUSED:
        return f"no pickle, or broken ({code!r} is no instruction)"
    return (
        f"{_REFUSED[code]} is refused: only dictionaries, lists, tuples, integers and text are read"
    )


def _proto(machine: _Machine) -> None:
    version = machine.number("<B")
    if version > 5:
        raise _Refusal(f"protocol {version}, at most 5 is expected")


def _frame(machine: _Machine) -> None:
    machine.take(8)  # its length, a hint for reading ahead


def _integer_line(machine: _Machine) -> None:
    digits = machine.line()
    if digits in (b"00", b"01"):
        raise _Refusal("a truth value, an integer is expected")
    machine.push(machine.decimal(digits))


def _dictionary(machine: _Machine) -> None:
    values = machine.group()
    machine.hold({})
    machine.set_items(values)


def _last(count: int) -> Callable[[_Machine], None]:
    def work(machine: _Machine) -> None:
        machine.hold(tuple(reversed([machine.pop() for _ in range(count)])))

    return work


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _proto,
    b"\x95": _frame,
    b"(": lambda m: m.mark(),
    b"}": lambda m: m.hold({}),
    b"]": lambda m: m.hold([]),
    b")": lambda m: m.hold(()),
    b"d": _dictionary,
    b"l": lambda m: m.hold(m.group()),
    b"t": lambda m: m.hold(tuple(m.group())),
    b"\x85": _last(1),
    b"\x86": _last(2),
    b"\x87": _last(3),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.group()),
    b"s": lambda m: m.set_items(m.two()),
    b"u": lambda m: m.set_items(m.group()),
    b"I": _integer_line,
    b"L": lambda m: m.push(m.decimal(m.line().removesuffix(b"L"))),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.long(m.number("<B")),
    b"\x8b": lambda m: m.long(m.number("<i")),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.text(m.number("<I")),
    b"\x8c": lambda m: m.text(m.number("<B")),
    b"\x8d": lambda m: m.text(m.number("<Q")),
    b"p": lambda m: m.remember(m.decimal(m.line())),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"g": lambda m: m.recall(m.decimal(m.line())),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
}
