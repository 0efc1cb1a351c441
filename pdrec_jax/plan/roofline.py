"""From a cost to the least time that it takes, and what binds.

Time is the longest of three: operations over the peak, bytes over the memory's bandwidth, bytes
sent over that of the links. Nothing reaches it; a program that overlaps all three perfectly would.
"""

from __future__ import annotations

import dataclasses

from pdrec_jax.plan.cost import Cost
from pdrec_jax.plan.hardware import Topology


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one device, bytes.

    Attributes:
      arguments: what the program is given; state that it replaces included.
      temporaries: what it holds on the way.
      outputs: results that do not lie where an argument lay.
    """

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        """Bytes that must be there at once."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program and how often a job runs it.

    Attributes:
      name: what it does.
      runs: how often.
      unit: what ``runs`` counts, in words.
      memory: of one device.
      cost: of one run, one device.
      whole: names of arrays that are as long as the users or items although they should be split.
    """

    name: str
    runs: float
    unit: str
    memory: Memory
    cost: Cost
    whole: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one run, at best.

    Attributes:
      compute: of the products.
      memory: of its bytes.
      network: of what is sent.
    """

    compute: float
    memory: float
    network: float

    @property
    def least(self) -> float:
        """The longest of the three."""
        return max(self.compute, self.memory, self.network)

    @property
    def binds(self) -> str:
        """Which of the three that is."""
        named = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(named, key=lambda name: named[name])


def times(cost: Cost, topology: Topology) -> Times:
    """Estimates the least time of one run."""
    device = topology.device
    network = sum(c.sent / topology.sending(max(c.group, c.span)) for c in cost.collectives)
    return Times(cost.flops / device.flops, cost.bytes / device.bandwidth, network)


def hours(program: Program, topology: Topology) -> float:
    """The least time of all runs of a program, in hours."""
    return program.runs * times(program.cost, topology).least / 3600


def fits(program: Program, topology: Topology) -> bool:
    """Whether a device's memory holds a program."""
    return program.memory.total <= topology.device.memory
