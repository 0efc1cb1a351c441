"""Reads the text of a compiled module: its computations, their instructions and shapes."""

from __future__ import annotations

import dataclasses
import math
import re

_BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<= ]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a device.

    Attributes:
      dtype: as XLA writes it, ``f32``.
      dims: its own part of the array, where that is split.
      space: 0 for the device's main memory; others are nearer to its processor.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes, without the padding of a layout."""
        return self.size * _BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
      name: unique in its module.
      opcode: such as ``fusion``.
      shapes: of the result, the leaves of a tuple in order.
      operands: names.
      literal: what stands in the parentheses: of a constant its value, of a parameter its number.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, kind: str) -> str | None:
        """The computation that an attribute names, such as ``body``."""
        found = re.search(rf"\b{kind}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def callees(self) -> list[str]:
        """All computations that it calls."""
        branches = _BRANCHES.search(self.attributes)
        listed = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
        return _CALLED.findall(self.attributes) + listed


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled module, the program of one device.

    Attributes:
      computations: instructions in order, by name.
      entry: name of the computation that runs.
      partitions: devices that run it together.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    partitions: int

    def shapes(self) -> list[tuple[str, Shape]]:
        """The shapes of all results, with the names of their instructions."""
        return [
            (instruction.name, shape)
            for body in self.computations.values()
            for instruction in body
            for shape in instruction.shapes
        ]


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Reads the leaves of a type, such as ``(f32[8,4]{1,0}, s32[])``."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(d.removeprefix("<=")) for d in dims.replace(" ", "").split(",") if d)
        space = _SPACE.search(layout)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _closing(text: str, begin: int) -> int:
    """The place of the parenthesis that closes the one at ``begin``."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced: {text[:80]}")


def parse_instruction(line: str) -> Instruction | None:
    """Reads a line; None where there is no instruction on it."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    begin = found.end()
    end = _closing(line, begin) + 1 if line[begin] == "(" else line.index(" ", begin)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    return Instruction(
        name=found[1],
        opcode=line[end:opening].strip(),
        shapes=parse_shapes(line[begin:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", line[opening : closing + 1])),
        literal=line[opening + 1 : closing],
        attributes=line[closing + 1 :],
    )


def parse(text: str) -> Module:
    """Reads the text of ``jax.stages.Compiled.as_text``.

    Raises:
      ValueError: there is no module in it.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", list[Instruction]()
    for line in text.splitlines():
        if name and line.startswith("}"):
            computations[name], name = tuple(body), ""
        elif not name:
            if found := _COMPUTATION.match(line):
                name, body = found[2], []
                entry = name if found[1] else entry
        elif instruction := parse_instruction(line):
            body.append(instruction)
    if not entry:
        raise ValueError("no module with an entry")
    partitions = _PARTITIONS.search(text)
    return Module(computations, entry, int(partitions[1]) if partitions else 1)
