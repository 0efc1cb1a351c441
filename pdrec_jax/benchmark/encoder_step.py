"""Stage ``encoder_step``: a training step on packed rows against the same step on padded rows."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.benchmark.contest import Comparison, Contestant, Training, largest_difference
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import Workload, make_workload
from pdrec_jax.data.batches import PackedRows
from pdrec_jax.data.negatives import complement_table
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.encoders.model import Batch, EncoderModel, Params, TrainingData, stops_at_ends
from pdrec_jax.encoders.stage import build, title_of
from pdrec_jax.encoders.step import training_loss
from pdrec_jax.encoders.task import EncoderTask

VARIANTS = ("base", "hbr+nns+dpa")
_PADDED, _PACKED = "padded rows", "packed rows"


def padded_rows(offsets: np.ndarray, users: np.ndarray, max_length: int) -> PackedRows:
    """Gives every user a row of its own, filled up on the left: the slow twin of ``pack``.

    Args:
      offsets: [U+1], CSR of the events.
      users: [B] indices, each with at least one event.
      max_length: L.
    """
    count = len(users)
    event = offsets[users + 1][:, None] - max_length + np.arange(max_length)[None, :]
    inside = event >= offsets[users][:, None]
    segment = np.where(inside, np.arange(count)[:, None], count)
    last = np.arange(1, count + 1) * max_length - 1
    event = np.where(inside, event, 0)
    return PackedRows((event.astype(np.int32),), (segment.astype(np.int32),), last.astype(np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedTask(EncoderTask):
    """The same training with one user a row."""

    def layout(self, epoch: int) -> Batch:
        """Draws the same users as ``EncoderTask``, and pads them."""
        users = self._draw(epoch)
        rows = [padded_rows(self.offsets, row, self.model.max_length) for row in users]
        return Batch(
            users.astype(np.int32),
            (np.stack([row.event[0] for row in rows]),),
            (np.stack([row.segment[0] for row in rows]),),
            np.stack([row.last for row in rows]),
            users.astype(np.int32),
        )


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields the comparisons of each encoder, for the base loss and for that with all plugins.

    Args:
      sizes: of the work.
      source: see ``make_workload``.
    """
    workload = make_workload(sizes, source)
    preferences = random_preferences(workload)
    for encoder in sizes.encoders:
        for variant in VARIANTS:
            yield _compare(sizes, workload, preferences, encoder, variant)


def _compare(
    sizes: Sizes, workload: Workload, preferences: Preferences, encoder: str, variant: str
) -> Comparison:
    config = workload.copy()
    config.encoder.name = encoder
    tasks = _tasks(config, workload, preferences, variant, sizes.steps)
    without_chance = config.copy_and_resolve_references()
    # Views are drawn by the cell too, so CL4SRec's own loss cannot agree.
    without_chance.encoder.dropout = without_chance.encoder.contrast_weight = 0.0
    state = Training(tasks[_PACKED].initial())
    layouts = {name: task.layout(1) for name, task in tasks.items()}
    filled = ", ".join(f"{name} {_filled(layouts[name]):.0%}" for name in tasks)
    shapes = " + ".join(f"{e.shape[1]} of {e.shape[2]}" for e in layouts[_PACKED].event)
    title = title_of(config.encoder, variant)
    layers = f"blocks {sizes.blocks}, " if encoder != "gru4rec" else ""
    return Comparison(
        "encoder_step",
        f"{title} training step, {sizes.encoder_batch} users, D {sizes.width}, "
        f"{layers}L {sizes.max_length}",
        workload.label,
        "step",
        tuple(
            Contestant(
                name,
                functools.partial(state.run, task),
                sizes.steps,
                _flops(sizes, encoder, layouts[name], task.model),
                None if name == _PADDED else _PADDED,
                moved=_moved(config, workload.split.train.num_items, sizes.steps),
            )
            for name, task in tasks.items()
        ),
        repeats=20,
        agree=lambda: _agree(
            _tasks(without_chance, workload, preferences, variant, sizes.steps),
            state.state["params"],
        ),
        agreement="loss of a step, relative, without dropout and views, with given negatives",
        notes=(
            f"Cells that hold an event: {filled}; rows of a packed batch: {shapes} cells.",
            f"A call draws, lays out and trains {sizes.steps} batches in one dispatch.",
        ),
    )


def _tasks(
    config: ConfigDict, workload: Workload, preferences: Preferences, variant: str, steps: int
) -> dict[str, EncoderTask]:
    """The twins; both train one structure of state."""
    task, _ = build(
        config,
        variant,
        workload.split,
        preferences,
        drawn=workload.users.preferences,
        ranked=workload.users.encoder,
        protocol=workload.protocol,
        candidates=workload.candidates,
        validation=workload.validation,
        name=variant,
    )
    packed = dataclasses.replace(task, steps=steps)
    fields = {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed) if f.init}
    return {_PADDED: PaddedTask(**fields), _PACKED: packed}


def _agree(tasks: dict[str, EncoderTask], params: Params) -> Mapping[str, float]:
    """Holds the twins' losses of each batch against each other, where nothing is left to chance."""
    loss, found = jax.jit(training_loss, static_argnums=1), {}
    for name, task in tasks.items():
        data, layout = given_negatives(task.data), task.layout(1)
        found[name] = [
            float(loss(params, task.model, data, _batch(layout, step), jax.random.key(0)))
            for step in range(task.steps)
        ]
    return {_PACKED: largest_difference(found[_PACKED], found[_PADDED])}


def _batch(layout: Batch, step: int) -> Batch:
    return jax.tree.map(lambda cells: cells[step], layout)


def given_negatives(data: TrainingData) -> TrainingData:
    """Leaves a user one safe negative, and everybody item 1 as the uniform one.

    A draw belongs to a cell, and packed and padded rows number their cells differently.
    """
    users = data.offsets.shape[0] - 1
    only_item = complement_table(np.zeros(users + 1, np.int64), np.zeros(0, np.int32), 1)
    return dataclasses.replace(data, outside=only_item, pools=data.pools[:, :1])


def random_preferences(workload: Workload) -> Preferences:
    """Makes up preferences: what they hold does not change the time of a step."""
    train, config = workload.split.train, workload.config
    rng = np.random.default_rng(0)

    def some_items(count: int) -> np.ndarray:
        shape = (train.num_users, count)
        return rng.integers(1, train.num_items + 1, shape).astype(np.int32)

    return Preferences(
        workload.users.preferences,
        some_items(config.dpa.coarse),
        some_items(config.nns.kept),
        rng.random(train.num_events, np.float32),
        np.zeros(train.num_users, np.float32),
    )


def _filled(layout: Batch) -> float:
    """Share of the cells that hold an event."""
    empty = np.asarray(layout.users).shape[1]
    cells = np.concatenate([np.asarray(segment).reshape(-1) for segment in layout.segment])
    return float(np.mean(cells < empty))


def _moved(config: ConfigDict, num_items: int, steps: int) -> float | None:
    """Bytes of the table, its moments and its gradient, read and written in each of some steps.

    None where the optimiser goes row by row: which rows a step reads is drawn.
    """
    if num_items > config.encoder.row_adam_above:
        return None
    return steps * 8 * 4.0 * num_items * config.encoder.width


def _flops(sizes: Sizes, encoder: str, layout: Batch, model: EncoderModel) -> float:
    """Operations of the encoder's matrix products, those of the gradient twice the forward ones.

    A cell takes 12 D^2 + 4 L D a block of attention, for four projections, two feed-forward layers
    and two products over the row, or 12 D^2 for the six products of a recurrent unit; DPA's whole
    histories and each view are encoded besides the input. Where these stop at the ends of
    histories, the last block takes keys and values of a cell, 4 D^2, and 8 D^2 a history.
    """
    width, input_pass, other_pass = sizes.width, 0.0, 0.0
    others = (model.dpa_fine > 0) + (2 if encoder == "cl4srec" else 0)
    for group in layout.event:
        cells = np.size(group)
        if encoder == "gru4rec":
            input_pass += cells * 12.0 * width**2
            continue
        block = cells * (12.0 * width**2 + 4.0 * group.shape[-1] * width)
        input_pass += sizes.blocks * block
        other_pass += (sizes.blocks - 1) * block + cells * 4.0 * width**2
    if encoder == "gru4rec" or not stops_at_ends(model):
        other_pass = input_pass
    else:
        other_pass += np.size(layout.users) * 8.0 * width**2
    return 3 * (input_pass + others * other_pass)
