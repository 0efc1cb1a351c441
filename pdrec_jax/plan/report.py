"""A plan as text: one block a program, then what it all comes to."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from pdrec_jax.plan.cost import Collective
from pdrec_jax.plan.hardware import PRICES_OF, Topology
from pdrec_jax.plan.roofline import Program, hours, times

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def amount(value: float, unit: str) -> str:
    """Writes a number with a prefix of thousands, such as ``1.23 GB``."""
    power = 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    digits = (
        0 if power == 0 and value == int(value) else 2 if value < 10 else 1 if value < 100 else 0
    )
    return f"{value:.{digits}f} {_UNITS[power]}{unit}".strip()


def seconds(value: float) -> str:
    """Writes a time."""
    for scale, unit in ((1e-6, "us"), (1e-3, "ms"), (1, "s"), (60, "min")):
        if value < scale * (60 if scale >= 1 else 1000):
            return f"{value / scale:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def sent(collectives: Sequence[Collective]) -> list[str]:
    """Lists collectives, those of one kind and group together."""
    groups: dict[tuple[str, int], list[Collective]] = collections.defaultdict(list)
    for collective in collectives:
        groups[collective.kind, collective.group].append(collective)
    lines = []
    for (kind, group), some in sorted(groups.items(), key=lambda g: -sum(c.sent for c in g[1])):
        count, total = sum(c.times for c in some), sum(c.bytes * c.times for c in some)
        lines.append(
            f"{count} {kind} among {group}: {amount(total, 'B')}, the largest "
            f"{amount(max(c.bytes for c in some), 'B')}"
        )
    return lines


def program_lines(program: Program, topology: Topology) -> list[str]:
    """Describes a program."""
    memory, cost, least = program.memory, program.cost, times(program.cost, topology)
    share = memory.total / topology.device.memory
    lines = [
        f"{program.name}  ({amount(program.runs, '')} runs, each {program.unit})",
        f"  memory      {amount(memory.total, 'B')} a device, {share:.0%} of it: "
        f"arguments {amount(memory.arguments, 'B')}, temporaries "
        f"{amount(memory.temporaries, 'B')}, output {amount(memory.outputs, 'B')}",
        f"  operations  {amount(cost.flops, 'FLOP')}, bytes {amount(cost.bytes, 'B')}, "
        f"sent {amount(cost.sent, 'B')}",
    ]
    lines += [f"  network     {line}" for line in sent(cost.collectives)]
    lines.append(
        f"  at best     {seconds(least.least)} a run: compute {seconds(least.compute)}, memory "
        f"{seconds(least.memory)}, network {seconds(least.network)}; {least.binds} binds"
    )
    if cost.guessed_loops:
        lines.append(f"  guessed     {cost.guessed_loops} loops end by their data; 4 turns assumed")
    if program.whole:
        lines.append(f"  NOT SPLIT   {', '.join(program.whole[:4])}")
    return lines


def total_lines(programs: Sequence[Program], topology: Topology, price: float | None) -> list[str]:
    """What all programs come to: hours and cost a stage."""
    by_stage: dict[str, float] = collections.defaultdict(float)
    for program in programs:
        by_stage[program.name.partition(":")[0]] += hours(program, topology)
    width = max(len(name) for name in [*by_stage, "together"])
    lines = []
    for name, took in [*by_stage.items(), ("together", sum(by_stage.values()))]:
        line = f"{name:{width}}  {took:10.3g} h"
        if price is not None:
            line += f"  {took * price * topology.count:12,.2f} $"
        lines.append(line)
    most = max(programs, key=lambda program: program.memory.total)
    lines.append(f"largest: {most.name}, {amount(most.memory.total, 'B')} a device")
    if price is None:
        lines.append("no price is known for this device; --price=DOLLARS an hour of one gives cost")
    else:
        known = price == topology.device.price
        what = f"list price of {PRICES_OF}" if known else "as given"
        lines.append(
            f"{price:g} $ an hour of each of {topology.count} devices ({what}). At best means that "
            "nothing but the longest of compute, memory and network takes time"
        )
    return lines
