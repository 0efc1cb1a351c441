"""Kinds of settings: what each allows, and how it says so."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

INFINITY = math.inf
_TINY = 2.0**-126  # the smallest normal float32


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      default: its value where nothing else is said; its type is the setting's type.
      expected: the range in words, for the error message.
      allows: whether a value of that type is in range.
      meaning: what it does.
    """

    default: Any
    expected: str
    allows: Callable[[Any], bool]
    meaning: str

    def fits(self, value: Any) -> bool:
        """Whether a value has the setting's type and is in range; integers pass for numbers."""
        kind = type(self.default)
        if isinstance(value, bool) or kind is bool:
            return kind is bool and isinstance(value, bool)
        if kind is float and isinstance(value, int):
            return self.allows(value)
        return isinstance(value, kind) and self.allows(value)


def among(default: str, choices: tuple[str, ...], meaning: str) -> Field:
    """A choice among names."""
    return Field(default, f"one of {', '.join(choices)}", choices.__contains__, meaning)


def count(default: int, meaning: str, least: int = 1, most: float = INFINITY) -> Field:
    """An integer in a range."""
    expected = f"an integer of at least {least}"
    if not math.isinf(most):
        expected += f" and at most {most}"
    return Field(default, expected, lambda v: least <= v <= most, meaning)


def number(
    default: float, low: float, high: float, meaning: str, *, open_low: bool = False
) -> Field:
    """A finite number in a range."""
    left = "above" if open_low else "at least"
    upper = "" if math.isinf(high) else f" and at most {high:g}"

    # What float32 would round to 0 is not above it.
    least = max(low, _TINY) if open_low and low == 0 else low

    def allows(value: float) -> bool:
        above = value > low and value >= least if open_low else value >= low
        # Compared first: an integer may be too large for a float.
        return above and value <= min(high, sys.float_info.max)

    return Field(default, f"a number {left} {low:g}{upper}", allows, meaning)


def flag(default: bool, meaning: str) -> Field:
    """True or False."""
    return Field(default, "True or False", lambda v: True, meaning)


def text(default: str, meaning: str) -> Field:
    """Any text."""
    return Field(default, "text", lambda v: True, meaning)


def place(default: str, words: tuple[str, ...], meaning: str) -> Field:
    """Text that is not empty: a directory, or a word in place of one."""
    expected = f"{', '.join(words)} or a directory"
    return Field(default, expected, lambda v: bool(v.strip()), meaning)


def file_name(default: str, meaning: str) -> Field:
    """Text that can be part of a file's name."""

    def allows(value: str) -> bool:
        return value.isprintable() and value.strip(". ") != "" and not set(value) & set("/\\")

    return Field(default, "text that can be part of a file's name", allows, meaning)


def widths(default: tuple[int, ...], meaning: str) -> Field:
    """A tuple of integers of at least 1, one or more."""

    def allows(value: tuple[Any, ...]) -> bool:
        return len(value) > 0 and all(type(width) is int and width >= 1 for width in value)

    return Field(default, "a tuple of integers of at least 1, one or more", allows, meaning)


def mesh(default: tuple[int, int], meaning: str) -> Field:
    """Two sizes of at least 1, one of which may be -1."""

    def allows(value: tuple[Any, ...]) -> bool:
        sizes = all(type(size) is int and (size >= 1 or size == -1) for size in value)
        return len(value) == 2 and sizes and value.count(-1) < 2

    return Field(default, "two integers of at least 1, or -1 for one of them", allows, meaning)


def names(default: tuple[str, ...], meaning: str) -> Field:
    """A tuple of different names, one or more."""

    def allows(value: tuple[Any, ...]) -> bool:
        texts = all(isinstance(name, str) and name for name in value)
        return texts and 0 < len(value) == len(set(value))

    return Field(default, "a tuple of different names, one or more", allows, meaning)


def overrides(meaning: str) -> Field:
    """A tuple of pairs (field, value)."""

    def allows(value: tuple[Any, ...]) -> bool:
        return all(
            isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
            for pair in value
        )

    return Field((), "a tuple of pairs (field, value)", allows, meaning)
