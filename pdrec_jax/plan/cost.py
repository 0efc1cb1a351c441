"""What one run of a compiled module costs a device: operations, bytes, and what it sends.

Read from the module itself, since XLA's own analysis counts the body of a loop once. Counted are

- operations of matrix products, two for each product and sum;
- bytes to and from main memory: each instruction reads its operands and writes its result, of a
  table only the rows that a gather, scatter or slice touches;
- collectives, by kind, with the bytes that a device sends in a ring.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable

import numpy as np

from pdrec_jax.plan.hlo import Instruction, Module, Shape

UNKNOWN_TRIPS = 4
"""Of a loop whose end depends on data; those in ``diffusion.selection`` take about as many."""

# fmt: off
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "domain", "partition-id", "replica-id", "iota", "opt-barrier",
    "add-dependency", "async-start", "async-update", "async-done",
})
_COLLECTIVES = frozenset({
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute",
})
_COUNTING = frozenset({
    "parameter", "constant", "get-tuple-element", "compare", "fusion", "call", "bitcast", "copy",
    "convert",
})
# fmt: on
_SLICES = ("dynamic-slice", "slice", "gather")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_GROUPS_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, size and group.

    Attributes:
      kind: such as ``all-reduce``.
      bytes: of the array of a device, the larger one of argument and result.
      group: devices that take part.
      times: how often it runs.
      span: neighbouring devices among which these lie; 0 for no more than take part.
    """

    kind: str
    bytes: int
    group: int
    times: int
    span: int = 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all, in a ring."""
        if self.kind == "collective-permute":
            return float(self.bytes) * self.times
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * (self.group - 1) / self.group * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one device.

    Attributes:
      flops: of matrix products.
      bytes: to and from main memory.
      collectives: the largest in all first.
      guessed_loops: loops whose number of turns is not in the module.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    guessed_loops: int = 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.sent for collective in self.collectives)


def _dims(attributes: str, name: str) -> tuple[int, ...]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", attributes)
    return tuple(int(d) for d in found[1].split(",") if d) if found else ()


def product_flops(instruction: Instruction, operands: list[Shape]) -> float:
    """Operations of a ``dot`` or a ``convolution``, from its shapes."""
    (result,) = instruction.shapes
    if instruction.opcode == "dot":
        contracted = _dims(instruction.attributes, "lhs_contracting_dims")
        return 2.0 * result.size * math.prod(operands[0].dims[d] for d in contracted)
    # On TPUs a matrix product is a convolution, a batched one over a window that is dilated so that
    # each output meets its own part of the kernel alone.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        return 0.0
    given, kernel, made = labels.groups()
    window = _Window.read(instruction.attributes)
    terms = operands[1].dims[kernel.index("i")]
    for number in range(sum(label.isdigit() for label in kernel)):
        sizes = (
            operands[0].dims[given.index(str(number))],
            operands[1].dims[kernel.index(str(number))],
            result.dims[made.index(str(number))],
        )
        terms *= window.products(number, *sizes)
    others = (size for label, size in zip(made, result.dims, strict=True) if not label.isdigit())
    return 2.0 * math.prod(others) * terms


@dataclasses.dataclass(frozen=True)
class _Window:
    """How a convolution's kernel moves, a value a spatial dimension; what is not said is plain."""

    stride: tuple[int, ...] = ()
    low: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()  # of the input
    kernel_dilation: tuple[int, ...] = ()

    @classmethod
    def read(cls, attributes: str) -> _Window:
        """Reads ``window={size=3x8 stride=1x7 pad=0_0x1_1 lhs_dilate=1x8}``."""
        found = re.search(r"\bwindow=\{([^}]*)\}", attributes)
        fields = dict(part.split("=") for part in found[1].split()) if found else {}

        def each(name: str) -> tuple[int, ...]:
            values = fields.get(name, "")
            return tuple(int(value.split("_")[0]) for value in values.split("x") if value)

        return cls(each("stride"), each("pad"), each("lhs_dilate"), each("rhs_dilate"))

    def products(self, number: int, given: int, kernel: int, made: int) -> int:
        """Pairs of an output and a kernel's element that meet a number of the input.

        Args:
          number: of the dimension.
          given: its size in the input.
          kernel: in the kernel.
          made: in the output.
        """

        def of(values: tuple[int, ...], plain: int) -> int:
            return values[number] if number < len(values) else plain

        return _met(
            *(given, kernel, made, of(self.stride, 1), of(self.low, 0)),
            *(of(self.dilation, 1), of(self.kernel_dilation, 1)),
        )


@functools.cache
def _met(
    given: int, kernel: int, made: int, stride: int, low: int, dilation: int, kernel_dilation: int
) -> int:
    places = np.arange(made, dtype=np.int64) * stride - low
    met = 0
    for element in range(kernel):
        at = places + element * kernel_dilation
        met += int(np.sum((at >= 0) & (at % dilation == 0) & (at // dilation < given)))
    return met


def group_size(attributes: str, partitions: int) -> int:
    """How many devices take part in a collective."""
    if found := _GROUPS_LISTED.search(attributes):
        return found[1].count(",") + 1
    if found := _GROUPS_IOTA.search(attributes):
        return int(found[2])
    if found := _GROUPS_MESH.search(attributes):
        sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", found[2]))
    return partitions


class _Walk:
    """Adds up the cost of a module."""

    def __init__(self, module: Module):
        self.module = module
        self.flops, self.bytes, self.guessed = 0.0, 0.0, 0
        self.sent: collections.Counter[tuple[str, int, int]] = collections.Counter()
        self._tables: dict[str, dict[str, Instruction]] = {}

    def table(self, computation: str) -> dict[str, Instruction]:
        """The instructions of a computation by name."""
        if computation not in self._tables:
            body = self.module.computations[computation]
            self._tables[computation] = {i.name: i for i in body}
        return self._tables[computation]

    def operands(self, computation: str, instruction: Instruction) -> list[tuple[Shape, ...]]:
        known = self.table(computation)
        return [known[name].shapes for name in instruction.operands if name in known]

    def visit(self, computation: str, times: int) -> None:
        for instruction in self.module.computations.get(computation, ()):
            self.instruction(computation, instruction, times)

    def instruction(self, computation: str, instruction: Instruction, times: int) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            turns = self.turns(instruction)
            for kind, count in (("body", turns), ("condition", turns + 1)):
                if name := instruction.called(kind):
                    self.visit(name, times * count)
            return
        if opcode in ("call", "conditional", "async-start"):
            for name in instruction.callees:
                self.visit(name, times)
            return
        kind = opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            given = _bytes(s for shapes in self.operands(computation, instruction) for s in shapes)
            # The result of a start holds its argument too.
            own = given if opcode.endswith("-start") else 0
            most = max(given, _bytes(instruction.shapes) - own)
            group = group_size(instruction.attributes, self.module.partitions)
            if group > 1:
                self.sent[kind, most, group] += times
        self.products(computation, instruction, times)
        self.bytes += times * self.traffic(computation, instruction)

    def products(self, computation: str, instruction: Instruction, times: int) -> None:
        if instruction.opcode in ("dot", "convolution"):
            operands = [shapes[0] for shapes in self.operands(computation, instruction)]
            self.flops += times * product_flops(instruction, operands)
        elif instruction.opcode == "fusion":
            for name in instruction.callees:
                for inner in self.module.computations.get(name, ()):
                    self.products(name, inner, times)

    def traffic(self, computation: str, instruction: Instruction) -> float:
        """Bytes of main memory that an instruction reads and writes."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        operands = self.operands(computation, instruction)
        if opcode.endswith("-start"):
            # (source, destination, context): what moves is the smaller of the two.
            pair = instruction.shapes[:2]
            moved = min((shape.bytes for shape in pair), default=0)
            return float(moved * sum(shape.space == 0 for shape in pair))
        if opcode == "fusion":
            return self.fusion(instruction, operands)
        if opcode in _SLICES:
            return 2.0 * _main(instruction.shapes)
        if opcode == "dynamic-update-slice":
            return 2.0 * _main(operands[1])
        if opcode == "scatter":
            return 3.0 * _main(operands[-1])
        return float(_main(instruction.shapes) + sum(map(_main, operands)))

    def fusion(self, instruction: Instruction, operands: list[tuple[Shape, ...]]) -> float:
        """Bytes of a fusion: of an operand that is only sliced, what the slices take."""
        body = self.inlined(next(iter(instruction.callees), ""))
        known = {inner.name: inner for inner in body}
        uses: dict[str, list[Instruction]] = collections.defaultdict(list)
        for inner in body:
            for name in inner.operands:
                uses[name].append(inner)
        total = 0.0
        for inner in body:
            if inner.opcode == "parameter":
                whole = _main(operands[int(inner.literal)])
                parts = [_touched(known, inner.name, use) for use in uses[inner.name]]
                read = [part for part in parts if part is not None]
                total += min(whole, sum(read)) if read and len(read) == len(parts) else whole
        root = body[-1] if body else None
        place = {"dynamic-update-slice": 1, "scatter": -1}.get(root.opcode if root else "")
        if root is not None and place is not None and root.operands[place] in known:
            return total + _bytes(known[root.operands[place]].shapes)
        return total + _main(instruction.shapes)

    def inlined(self, computation: str) -> list[Instruction]:
        """The instructions of a fusion's computation, those of the fusions within it among them."""
        body: list[Instruction] = []
        for instruction in self.module.computations.get(computation, ()):
            if instruction.opcode != "fusion" or not instruction.callees:
                body.append(instruction)
                continue
            within = self.inlined(instruction.callees[0])
            # Its parameters are what it is given, and its root, the last one, bears its name.
            named = {one.name: f"{instruction.name}/{one.name}" for one in within}
            for one in within:
                if one.opcode == "parameter":
                    named[one.name] = instruction.operands[int(one.literal)]
            if within:
                named[within[-1].name] = instruction.name
            body += [
                dataclasses.replace(
                    one, name=named[one.name], operands=tuple(named.get(o, o) for o in one.operands)
                )
                for one in within
                if one.opcode != "parameter"
            ]
        return body

    def turns(self, loop: Instruction) -> int:
        """How often the body of a loop runs; loops that count do so from 0 by 1."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = list(self.module.computations.get(loop.called("condition") or "", ()))
        for instruction in condition:  # grows by what is called
            for name in instruction.callees:
                condition += self.module.computations.get(name, ())
        compares = [i for i in condition if i.opcode == "compare"]
        limits = [i for i in condition if i.opcode == "constant"]
        plain = len(compares) == len(limits) == 1 and limits[0].literal.isdigit()
        plain = plain and all(i.opcode in _COUNTING for i in condition)
        if plain and "direction=LT" in compares[0].attributes:
            return int(limits[0].literal)
        self.guessed += 1
        return UNKNOWN_TRIPS


def _touched(known: dict[str, Instruction], name: str, use: Instruction) -> int | None:
    """Bytes of an array that a use of it reads; None where it reads all."""
    if use.operands[:1] != (name,):
        return None
    if use.opcode in _SLICES:
        return _bytes(use.shapes)
    if use.opcode == "dynamic-update-slice":
        return 0
    if use.opcode == "scatter" and use.operands[-1] in known:
        return _bytes(known[use.operands[-1]].shapes)
    return None


def _bytes(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes)


def _main(shapes: Iterable[Shape]) -> int:
    """Bytes of what lies in main memory."""
    return sum(shape.bytes for shape in shapes if shape.space == 0)


def cost_of(module: Module) -> Cost:
    """Adds up what one run of a module costs a device."""
    walk = _Walk(module)
    walk.visit(module.entry, 1)
    collectives = [Collective(*what, times) for what, times in walk.sent.items()]
    collectives.sort(key=lambda c: -c.sent)
    return Cost(walk.flops, walk.bytes, tuple(collectives), walk.guessed)
