"""The programs of a job, lowered for a mesh that need not be here.

They are the functions that training runs, on shapes alone: nothing of size is made. What a run
draws from its log, such as the number of rows of a batch, is drawn from the sizes of ``Sizes``.

Letters: d places on the mesh's axis ``data``, n steps of a dispatch, P tokens, K items of a user.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pdrec_jax.data.batches import enough_rows
from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.negatives import ComplementTable
from pdrec_jax.diffusion import inference, ranking
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.optimise import train_steps_on
from pdrec_jax.diffusion.sharded_optimise import train_steps_on_windows_on
from pdrec_jax.diffusion.sharded_pools import cut_block_on
from pdrec_jax.diffusion.sharded_vectors import TOKEN_STEP
from pdrec_jax.diffusion.sharded_windows import HeldHead
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import SplitBatch, size_of_head
from pdrec_jax.encoders import on_mesh as encoder_on_mesh
from pdrec_jax.encoders import ranking as encoder_ranking
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.model import Batch, EncoderModel, TrainingData
from pdrec_jax.encoders.task import STEPS_ON_MESH, EncoderTask
from pdrec_jax.evaluation.protocol import protocol_of
from pdrec_jax.given import pool_rules
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.row_adam import Tails
from pdrec_jax.settings import seeded
from pdrec_jax.sharding import DATA, MODEL, abstract, axis, made_in_place, round_up

_DRAWS = 8  # batches that decide how large one is at most


@dataclasses.dataclass(frozen=True)
class Stage:
    """A program, not compiled yet.

    Attributes:
      name: what it does.
      runs: how often a job runs it.
      unit: what a run is, in words.
      lower: lowers it.
    """

    name: str
    runs: float
    unit: str
    lower: Callable[[], jax.stages.Lowered]


def _array(shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array that comes from the host, and lies where the compiler wants it."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(
    mesh: Mesh, shape: tuple[int, ...], dtype: Any, *spec: str | None
) -> jax.ShapeDtypeStruct:
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def evaluations(section: ConfigDict, first: int) -> int:
    """How often a stage ranks its users on candidates: as it trains, and twice at its end."""
    return max(0, (section.epochs - first) // section.evaluate_every + 1) + 2


def diffusion_stages(config: ConfigDict, sizes: Sizes, mesh: Mesh) -> Iterator[Stage]:
    """Training, ranking and reading out the diffusion model."""
    section = seeded(config, "diffusion")
    model, initialise = diffusion_stage.make_model(section, sizes.split())
    model, initialise = dataclasses.replace(model, mesh=mesh), made_in_place(initialise, mesh)
    places = axis(mesh, DATA)
    steps = -(-sizes.users // section.batch_size)
    task = DiffusionTask(section, model, initialise, None, None, None, steps)  # type: ignore[arg-type]
    dispatch = task._steps_a_dispatch

    def batch(size: int, *leading: int) -> SparseBatch:
        share = round_up(size, places) // places
        tokens = round_up(int(sizes.draw((_DRAWS, places, share)).sum(axis=-1).max()), TOKEN_STEP)
        spec = (*[None] * len(leading), DATA)
        return SparseBatch(
            *(  # type: ignore[arg-type]
                _placed(mesh, (*leading, places, tokens), dtype, *spec)
                for dtype in (jnp.int32, jnp.int32, jnp.float32)
            )
        )

    def train() -> jax.stages.Lowered:
        state, tokens = task.abstract(), batch(section.batch_size, dispatch)
        given = _array((dispatch,)), 0.1
        static = model, section.weight_decay, section.seed, section.batch_size
        if not model.windowed:
            return train_steps_on.lower(state, tokens, *given, *static)
        # Who knows the sizes alone takes each token to be near and far, see ``_head``.
        missed = _array((section.epochs * steps + 1,), jnp.float32)
        tail = Tails(missed, missed)  # type: ignore[arg-type]
        both = SplitBatch(tokens, tokens)
        return train_steps_on_windows_on.lower(state, both, *given, _head(model), tail, *static)

    runs = section.epochs * -(-steps // dispatch)
    yield Stage("diffusion: train", runs, f"{dispatch} steps of {section.batch_size} users", train)

    block = round_up(section.block, places)
    blocks = -(-sizes.users // block)
    params = abstract(initialise, mesh)
    hidden = tuple(section.hidden)
    coupled = None
    if model.affine:
        coupled = (
            _placed(mesh, (hidden[-1], hidden[-1]), jnp.float32),
            _placed(mesh, (hidden[-1],), jnp.float32),
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    users, width = _array((block,)), round_up(sizes.longest, 16)
    unit = f"{block} users"

    def count(full: bool) -> jax.stages.Lowered:
        given = params, coupled, batch(block), key, users
        if full:
            seen = _array((block, width))
            return ranking._count_full.lower(*given, users, seen, model, sizes.items)
        items = _array((block, 1 + config.evaluation.negatives))
        return ranking._count_sampled.lower(*given, items, model)

    often = evaluations(section, section.evaluate_every)
    yield Stage("diffusion: rank candidates", often * blocks, unit, lambda: count(False))
    yield Stage("diffusion: rank all items", blocks, unit, lambda: count(True))

    score = jax.jit(inference.score_all, static_argnums=0)
    yield Stage(
        "preferences: score",
        blocks,
        unit,
        lambda: score.lower(model, params, coupled, batch(block), key, users),
    )
    protocol = protocol_of(config)
    rules = pool_rules(config, protocol)
    excluded = width + (2 if protocol.nns_excludes_heldout else 0)

    def cut() -> jax.stages.Lowered:
        scores = _placed(mesh, (block, model.width), jnp.float32, DATA, MODEL)
        ids = [_array((block, columns)) for columns in (width, width, excluded)]
        return cut_block_on.lower(mesh, scores, *ids, key, users, rules, sizes.items)

    yield Stage("preferences: cut pools", blocks, unit, cut)


def _head(model: inference.DiffusionModel) -> HeldHead:
    """The head where the most popular slots all lie in one part: the largest that a device has."""
    mesh, parts = model.mesh, axis(model.mesh, MODEL)
    assert mesh is not None
    size = min(size_of_head(model.num_slots, model.error_fraction), model.width // parts)
    shapes = ((parts * size,), jnp.int32), ((model.width,), jnp.bool_), *[((parts,), jnp.int32)] * 2
    return HeldHead(*(_placed(mesh, *shape, MODEL) for shape in shapes))  # type: ignore[arg-type]


def encoder_stages(config: ConfigDict, sizes: Sizes, mesh: Mesh) -> Iterator[Stage]:
    """Training each variant of the encoder, and ranking with it."""
    section = seeded(config, "encoder")
    steps = -(-sizes.users // section.batch_size)
    dispatch = min(STEPS_ON_MESH, steps)
    plain = None
    for variant in section.variants:
        plugins = encoder_stage.parse_variant(variant)
        model, initialise = encoder_stage.make_model(config, plugins, sizes.items)
        model = dataclasses.replace(model, mesh=mesh)
        initialise = made_in_place(initialise, mesh)
        yield Stage(
            f"{encoder_stage.title_of(section, variant)}: train",
            section.epochs * -(-steps // dispatch),
            f"{dispatch} steps of {section.batch_size} users",
            functools.partial(_encoder_step, config, section, sizes, model, initialise, dispatch),
        )
        plain = model.without_training()
    assert plain is not None
    yield from _encoder_ranking(config, section, sizes, plain, initialise)


def _layout(model: EncoderModel, lengths: np.ndarray, *leading: int) -> tuple[Batch, int]:
    """The shapes of batches whose users have these lengths, [draws, B]; their events at most."""
    draws, size = lengths.shape
    offsets = offsets_of(lengths.reshape(-1))
    users = np.arange(draws * size).reshape(draws, size)
    rows = enough_rows(offsets, users, model.max_length, model.layout)
    widths = model.layout.row_lengths(model.max_length)
    groups = tuple(_array((*leading, *cells)) for cells in zip(rows, widths, strict=True))
    ids = _array((*leading, size))
    events = round_up(int(lengths.sum(axis=-1).max()), encoder_on_mesh.EVENT_STEP)
    return Batch(ids, groups, groups, ids, ids), events  # type: ignore[arg-type]


def _encoder_step(
    config: ConfigDict,
    section: ConfigDict,
    sizes: Sizes,
    model: EncoderModel,
    initialise: Callable[[], Any],
    dispatch: int,
) -> jax.stages.Lowered:
    task = EncoderTask(
        section, model, initialise, None, None, None, None, 0, "", sizes.items  # type: ignore[arg-type]
    )  # fmt: skip
    size = section.batch_size
    batch, events = _layout(model, sizes.draw((_DRAWS, size)), dispatch)
    offsets, flat = _array((dispatch, size + 1)), _array((dispatch, events))
    none = _array((dispatch, 1, 1))
    data = TrainingData(
        offsets,  # type: ignore[arg-type]
        flat,  # type: ignore[arg-type]
        ComplementTable(offsets, flat, sizes.items, sizes.longest.bit_length()),  # type: ignore[arg-type]
        _array((dispatch, events if model.hbr else 1), jnp.float32),  # type: ignore[arg-type]
        _array((dispatch, size, config.nns.kept)) if model.nns else none,  # type: ignore[arg-type]
        _array((dispatch, size, config.dpa.coarse)) if model.dpa else none,  # type: ignore[arg-type]
    )
    given = task.abstract(), data, batch, _array((dispatch,)), 0.1
    return encoder_on_mesh.train_steps_on.lower(*given, model, section.seed)


def _encoder_ranking(
    config: ConfigDict,
    section: ConfigDict,
    sizes: Sizes,
    model: EncoderModel,
    initialise: Callable[[], Any],
) -> Iterator[Stage]:
    block = round_up(section.block, axis(model.mesh, DATA))
    batch, events = _layout(model, sizes.draw((_DRAWS, block)))
    params = abstract(initialise, model.mesh)
    given = _array((block + 1,)), _array((events,)), batch
    width = round_up(sizes.longest, 16)

    def count(full: bool) -> jax.stages.Lowered:
        if full:
            table, seen = params["item_embedding"], (_array((block,)), _array((block, width)))
            return encoder_ranking._count_full.lower(
                params, table, *given, *seen, model, sizes.items
            )
        items = _array((block, 1 + config.evaluation.negatives))
        return encoder_ranking._count_sampled.lower(params, *given, items, model)

    blocks, variants = -(-sizes.users // block), len(section.variants)
    often = evaluations(section, section.first_evaluation)
    unit = f"{block} users"
    yield Stage("encoders: rank candidates", variants * often * blocks, unit, lambda: count(False))
    yield Stage("encoders: rank all items", variants * blocks, unit, lambda: count(True))


def stages(config: ConfigDict, sizes: Sizes, mesh: Mesh) -> Iterator[Stage]:
    """All programs of a job that are worth a line, in the order in which it runs them."""
    if config.stage in ("all", "diffusion"):
        yield from diffusion_stages(config, sizes, mesh)
    if config.stage in ("all", "encoder"):
        yield from encoder_stages(config, sizes, mesh)
