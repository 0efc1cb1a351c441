"""The programs of a job by formulas, for devices that nothing here compiles for.

The quantities are those that ``compile`` reads from a program. Matrix products are counted as they
are. Of memory's traffic the terms that grow with the catalogue or the batch are counted, each array
as often as an unfused program passes it.

Letters: b users and i slots of a device, F and G widths of the denoiser's first and last layer, C
candidates, N cells of a batch on a device, D width of the encoder, P tokens of a device.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.data.batches import PACKED, enough_rows
from pdrec_jax.encoders import registry
from pdrec_jax.evaluation.protocol import get_protocol
from pdrec_jax.plan.cost import Collective, Cost
from pdrec_jax.plan.roofline import Memory, Program
from pdrec_jax.plan.sizes import Sizes, as_offsets

_FLOAT = 4
_PASSES = 10  # of a training step over [b, i]: start, noise, dropout, output, error and gradients
_KEPT = 4  # such arrays at once
_STEPS = 5, 8  # of a dispatch: diffusion, encoder
_KEY_BITS = 32


@dataclasses.dataclass(frozen=True)
class _Mesh:
    """(data, model) and the parts that a device has."""

    data: int
    model: int

    def users(self, count: int) -> int:
        return -(-count // self.data)

    def slots(self, items: int) -> int:
        return -(-(items + 1) // self.model)

    def sum_items(self, numbers: float, times: int = 1) -> list[Collective]:
        """A sum over the parts of the catalogue."""
        return self._all(self.model, "all-reduce", numbers, times)

    def over_users(self, kind: str, numbers: float, times: int = 1) -> list[Collective]:
        """Among the parts of the batch; devices of one part are neighbours, these are not."""
        found = self._all(self.data, kind, numbers, times)
        return [dataclasses.replace(c, span=self.data * self.model) for c in found]

    def gather_items(self, numbers: float, times: int = 1) -> list[Collective]:
        """What all parts of the catalogue have, on each."""
        return self._all(self.model, "all-gather", numbers, times)

    @staticmethod
    def _all(group: int, kind: str, numbers: float, times: int) -> list[Collective]:
        return [Collective(kind, int(numbers) * _FLOAT, group, times)] if group > 1 else []


def _cost(flops: float, numbers: float, *collectives: list[Collective]) -> Cost:
    every = sorted(itertools.chain(*collectives), key=lambda c: -c.sent)
    return Cost(flops, numbers * _FLOAT, tuple(every))


def _memory(arguments: float, temporaries: float, outputs: float = 0) -> Memory:
    return Memory(*(int(count) * _FLOAT for count in (arguments, temporaries, outputs)))


def _evaluations(section: ConfigDict, first: int) -> int:
    return max(0, (section.epochs - first) // section.evaluate_every + 1) + 2


def _diffusion(config: ConfigDict, sizes: Sizes, mesh: _Mesh) -> Iterator[Program]:
    section = config.diffusion
    widths = (*reversed(section.hidden), *section.hidden[1:])
    first, last = widths[0], widths[-1]
    middle = sum(a * b for a, b in itertools.pairwise(widths))
    mean = float(sizes.lengths.mean())
    slots = mesh.slots(sizes.items)
    table = slots * (first + last + 1)

    size = mesh.users(section.batch_size)
    dense = size * slots
    # A product forward, and one for the gradient of each factor but the batch itself.
    flops = 2.0 * dense * (2 * first + 3 * last) + 6.0 * size * middle
    # Parameters, both moments and the gradient are read and written; products read the tables.
    numbers = 8.0 * table + slots * (first + 2 * last) + _PASSES * dense
    steps = -(-sizes.users // section.batch_size)
    turns = min(_STEPS[0], steps)
    yield Program(
        "diffusion: train",
        section.epochs * -(-steps // turns),
        f"{turns} steps of {section.batch_size} users",
        _memory(3 * table + 3 * turns * size * mean, table + _KEPT * dense),
        _cost(
            turns * flops,
            turns * numbers,
            mesh.sum_items(size * first, 2 * turns),
            mesh.sum_items(size, turns),
            mesh.over_users("all-reduce", table, turns),
        ),
    )

    block = mesh.data * mesh.users(section.block)
    users, candidates = mesh.users(block), 1 + config.evaluation.negatives
    blocks, unit = -(-sizes.users // block), f"{block} users"
    # The loop in H dimensions, from the users' tokens.
    loop = 2.0 * users * section.steps * (last * first + middle)
    tokens = users * mean
    start = tokens * first
    held = table + 3 * tokens + last * first
    scores = users * slots
    into_h = mesh.sum_items(users * first)
    yield Program(
        "diffusion: rank candidates",
        _evaluations(section, section.evaluate_every) * blocks,
        unit,
        _memory(held, users * candidates * last),
        _cost(
            loop + 2.0 * users * candidates * last,
            2 * start + 3 * users * candidates * last,
            into_h,
            mesh.sum_items(users * candidates),
        ),
    )
    yield Program(
        "diffusion: rank all items",
        blocks,
        unit,
        _memory(held, 2 * scores),
        _cost(
            loop + 2.0 * scores * last,
            2 * start + slots * last + 5 * scores,
            into_h,
            mesh.sum_items(users, 3),
        ),
    )
    yield Program(
        "preferences: score",
        blocks,
        unit,
        _memory(held, scores, scores),
        _cost(loop + 2.0 * scores * last, 2 * start + slots * last + scores, into_h),
    )
    protocol = get_protocol(config.protocol)
    cuts = 1 if protocol.nns_last_fraction == 1 else 2
    looks = cuts * (_KEY_BITS + 2 + (sizes.items + 1).bit_length())
    kept, longest = config.nns.kept, sizes.longest
    yield Program(
        "preferences: cut pools",
        blocks,
        unit,
        _memory(scores + 3 * block * longest, 3 * scores, block * (kept + config.dpa.coarse)),
        _cost(
            0.0,
            (looks + 6) * scores,
            mesh.sum_items(users, looks),
            mesh.sum_items(users * kept),
            mesh.sum_items(users * longest),
            mesh.gather_items(users * config.dpa.coarse * mesh.model, 2),
        ),
    )


def _encoder(config: ConfigDict, sizes: Sizes, mesh: _Mesh) -> Iterator[Program]:
    section = config.encoder
    (title, _), width, length = registry.find(section.name), section.width, section.max_length
    slots = mesh.slots(sizes.items)
    table = slots * width
    # Four projections and two layers, or the six matrices of a recurrence; attention on top.
    attends = section.name != "gru4rec"
    layer = 12.0 * width**2 + (4.0 * length * width if attends else 0.0)

    def cells_of(count: int) -> int:
        lengths = sizes.draw((count,))
        rows = enough_rows(as_offsets(lengths), [np.arange(count)], length, PACKED)
        widths = PACKED.row_lengths(length)
        return -(-sum(r * w for r, w in zip(rows, widths, strict=True)) // mesh.data)

    steps = -(-sizes.users // section.batch_size)
    turns = min(_STEPS[1], steps)
    cells, size = cells_of(section.batch_size), mesh.users(section.batch_size)
    for variant in section.variants:
        plugins = () if variant == "base" else tuple(variant.split("+"))
        passes = 2 if "dpa" in plugins else 1
        read = cells * (passes + 2 + ("nns" in plugins))
        read += size * config.dpa.coarse if "dpa" in plugins else 0
        activations = cells * passes * width * section.blocks * 8
        yield Program(
            f"{'+'.join([title, *(plugin.upper() for plugin in plugins)])}: train",
            section.epochs * -(-steps // turns),
            f"{turns} steps of {section.batch_size} users",
            _memory(
                3 * table + turns * 6 * cells * mesh.data, table + activations + 2 * read * width
            ),
            _cost(
                turns * 3.0 * cells * passes * section.blocks * layer,
                turns * (8.0 * table + 6 * read * width + 3 * activations),
                mesh.sum_items(read * width, turns),
                # Of the table's gradient the rows that were read are gathered, and their ids.
                mesh.over_users("all-gather", read * (width + 1) * mesh.data, turns),
            ),
        )
    block = mesh.data * mesh.users(section.block)
    users, blocks = mesh.users(block), -(-sizes.users // block)
    candidates, cells = 1 + config.evaluation.negatives, cells_of(block)
    encode = 1.0 * cells * section.blocks * layer
    activations = cells * width * 8
    looked_up = mesh.sum_items(cells * width)
    variants, scores = len(section.variants), users * slots
    yield Program(
        "encoders: rank candidates",
        variants * _evaluations(section, section.first_evaluation) * blocks,
        f"{block} users",
        _memory(table, activations + 2 * users * candidates * width),
        _cost(
            encode + 2.0 * users * candidates * width,
            2 * activations + 4 * users * candidates * width,
            looked_up,
            mesh.sum_items(users * candidates * width),
        ),
    )
    yield Program(
        "encoders: rank all items",
        variants * blocks,
        f"{block} users",
        _memory(2 * table, activations + 2 * scores),
        _cost(
            encode + 2.0 * scores * width,
            2 * activations + 2 * table + 5 * scores,
            looked_up,
            mesh.sum_items(users, 3),
        ),
    )


def programs(config: ConfigDict, sizes: Sizes, data: int, model: int) -> Iterator[Program]:
    """Estimates the programs of a job.

    Args:
      config: of the job.
      sizes: of its log.
      data: size of the mesh's axis.
      model: likewise.
    """
    mesh = _Mesh(data, model)
    if config.stage in ("all", "diffusion"):
        yield from _diffusion(config, sizes, mesh)
    if config.stage in ("all", "encoder"):
        yield from _encoder(config, sizes, mesh)
