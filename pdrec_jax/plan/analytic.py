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
from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.diffusion.redraw import words
from pdrec_jax.diffusion.sharded_pools import KEY_BITS
from pdrec_jax.diffusion.sharded_vectors import TOKEN_STEP
from pdrec_jax.diffusion.task import steps_a_dispatch
from pdrec_jax.diffusion.windows import size_of_head, width_of_windows
from pdrec_jax.encoders.stage import count_negatives, parse_variant, title_of
from pdrec_jax.encoders.task import STEPS_ON_MESH
from pdrec_jax.evaluation.protocol import protocol_of
from pdrec_jax.plan.cost import Collective, Cost
from pdrec_jax.plan.roofline import Memory, Program
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.plan.stages import evaluations
from pdrec_jax.sharding import round_up

_FLOAT = 4
_PASSES = 10  # of a training step over [b, i]: start, noise, dropout, output, error and gradients
_KEPT = 4  # such arrays at once
_DRAWING = 20  # passes of a normal draw over [b, i]: five groups of rounds, two words in and out
_DRAWN = 4  # more arrays at once meanwhile


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


def _training(section: ConfigDict, sizes: Sizes, mesh: _Mesh) -> Program:
    """Training of the diffusion model, dense or on windows."""
    widths = (*reversed(section.hidden), *section.hidden[1:])
    first, last = widths[0], widths[-1]
    middle = sum(a * b for a, b in itertools.pairwise(widths))
    slots, size = mesh.slots(sizes.items), mesh.users(section.batch_size)
    table = slots * (first + last + 1)
    tokens = size * float(sizes.lengths.mean())
    steps = -(-sizes.users // section.batch_size)
    by_rows = section.error_fraction < 1
    turns = steps_a_dispatch(steps, by_rows=by_rows)
    windowed = min(section.noise_fraction, section.error_fraction) < 1

    # Rows that the noise enters at, and rows whose error counts: all, or windows and the head.
    noisy = counted = slots
    if windowed:
        every = sizes.items + 1
        head = min(size_of_head(every, section.error_fraction), slots)
        window, of_head = (
            min(width_of_windows(count, section.noise_fraction), count) for count in (every, head)
        )
        noisy = min(window, slots) + of_head
        counted = min(width_of_windows(every, section.error_fraction), slots) + head
    # A product forward, and one for the gradient of each factor but the batch itself.
    flops = 2.0 * size * (2 * noisy * first + 3 * counted * last) + 6.0 * size * middle
    numbers = noisy * first + 2 * counted * last + _PASSES * size * (noisy + counted) / 2
    kept = _KEPT * size * (noisy + counted) / 2
    over = [
        mesh.sum_items(size * first, 2 * turns),
        mesh.sum_items(size, turns),
    ]
    if not by_rows:
        # Parameters, both moments and the gradient are read and written.
        numbers, kept = numbers + 8.0 * table, kept + table
        over.append(mesh.over_users("all-reduce", table, turns))
    else:
        # The same of the rows that a step reads; those of far tokens are gathered from all users.
        far = tokens * mesh.data
        near = (noisy - of_head + head) * first + counted * last
        rows = near + far * (first + last)
        numbers += 8.0 * rows + 6.0 * table / turns
        kept += 3 * rows
        over.append(mesh.over_users("all-reduce", near + slots, turns))
        over.append(mesh.over_users("all-gather", far * (first + last + 1), turns))
    held = 3 * table + 3 * turns * round_up(int(tokens), TOKEN_STEP)
    if windowed:
        # As many tokens of the head, and what rows that wait have missed, by the number of steps.
        held += 3 * turns * round_up(int(tokens), TOKEN_STEP) + 2 * section.epochs * steps
    return Program(
        "diffusion: train",
        section.epochs * -(-steps // turns),
        f"{turns} steps of {section.batch_size} users",
        _memory(held, kept),
        _cost(turns * flops, turns * numbers, *over),
    )


def _diffusion(config: ConfigDict, sizes: Sizes, mesh: _Mesh) -> Iterator[Program]:
    section = config.diffusion
    widths = (*reversed(section.hidden), *section.hidden[1:])
    first, last = widths[0], widths[-1]
    middle = sum(a * b for a, b in itertools.pairwise(widths))
    mean = float(sizes.lengths.mean())
    slots = mesh.slots(sizes.items)
    table = slots * (first + last + 1)

    yield _training(section, sizes, mesh)

    block = mesh.data * mesh.users(section.block)
    users, candidates = mesh.users(block), 1 + config.evaluation.negatives
    blocks, unit = -(-sizes.users // block), f"{block} users"
    tokens, scores = users * mean, users * slots
    affine = not (section.normalise or section.sampling_noise)
    into_h = mesh.sum_items(users * first, 1 if affine else section.steps)
    if affine:
        # The loop in H dimensions, from the users' tokens or from noisy vectors.
        loop = 2.0 * users * section.steps * (last * first + middle)
        passed = 2.0 * tokens * first
        if section.sampling_steps:
            loop += 2.0 * scores * first
            passed = slots * first + (4.0 + _DRAWING) * scores
        few, all_of_them = 2.0 * users * candidates * last, 2.0 * scores * last
        read_few, read_all = 3.0 * users * candidates * last, slots * last + scores
    else:
        loop = 2.0 * section.steps * (scores * (first + last) + users * middle)
        drawing = _DRAWING if section.sampling_noise else 0
        passed = section.steps * (slots * (first + last) + (4.0 + drawing) * scores)
        few, all_of_them, read_few, read_all = 0.0, 0.0, 1.0 * users * candidates, 0.0
        if section.normalise:
            into_h += mesh.sum_items(users, section.steps)
    dense = 0 if affine and not section.sampling_steps else 2 * scores
    if section.sampling_steps or section.sampling_noise:
        dense += _DRAWN * scores
    held = table + 3 * tokens + (last * first if affine else 0)
    yield Program(
        "diffusion: rank candidates",
        evaluations(section, section.evaluate_every) * blocks,
        unit,
        _memory(held, dense + (users * candidates * last if affine else 0)),
        _cost(loop + few, passed + read_few, into_h, mesh.sum_items(users * candidates)),
    )
    yield Program(
        "diffusion: rank all items",
        blocks,
        unit,
        _memory(held, dense + 2 * scores),
        _cost(
            loop + all_of_them,
            passed + read_all + 4 * scores,
            into_h,
            mesh.sum_items(users, 3),
        ),
    )
    yield Program(
        "preferences: score",
        blocks,
        unit,
        _memory(held, dense + scores, scores),
        _cost(loop + all_of_them, passed + read_all, into_h),
    )
    protocol = protocol_of(config)
    cuts = 1 if protocol.nns_last_fraction == 1 else 2
    looks = cuts * (KEY_BITS + 2 + (sizes.items + 1).bit_length())
    kept, longest = config.nns.kept, sizes.longest
    pools = words(sizes.items) if config.nns.refresh_epochs else 0
    yield Program(
        "preferences: cut pools",
        blocks,
        unit,
        _memory(
            scores + 3 * block * longest,
            3 * scores,
            block * (kept + config.dpa.coarse + pools),
        ),
        _cost(
            0.0,
            (looks + 6) * scores,
            mesh.sum_items(users, looks),
            mesh.sum_items(users * kept),
            mesh.sum_items(users * longest),
            mesh.gather_items(users * config.dpa.coarse * mesh.model, 2),
            mesh.gather_items(users * pools),
        ),
    )


def _encoder(config: ConfigDict, sizes: Sizes, mesh: _Mesh) -> Iterator[Program]:
    section = config.encoder
    width, length = section.width, section.max_length
    slots = mesh.slots(sizes.items)
    table = slots * width
    # Four projections and two layers, or the six matrices of a recurrence; attention on top.
    attends, views = section.name != "gru4rec", 2 if section.name == "cl4srec" else 0
    layer = 12.0 * width**2 + (4.0 * length * width if attends else 0.0)

    def cells_of(count: int) -> int:
        lengths = sizes.draw((count,))
        rows = enough_rows(offsets_of(lengths), [np.arange(count)], length, PACKED)
        widths = PACKED.row_lengths(length)
        return -(-sum(r * w for r, w in zip(rows, widths, strict=True)) // mesh.data)

    steps = -(-sizes.users // section.batch_size)
    turns = min(STEPS_ON_MESH, steps)
    cells, size = cells_of(section.batch_size), mesh.users(section.batch_size)
    for variant in section.variants:
        plugins = parse_variant(variant)
        drawn = config.dpa.drawn if "dpa" in plugins else 0
        picks = "dpa" in plugins and not drawn
        passes = 1 + picks + views
        positives = 1 + drawn + (section.history_weight > 0)
        read = cells * (passes + positives + sum(count_negatives(config, plugins)))
        read += size * config.dpa.coarse if picks else 0
        activations = cells * passes * width * section.blocks * 8
        yield Program(
            f"{title_of(section, variant)}: train",
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
        variants * evaluations(section, section.first_evaluation) * blocks,
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
