"""The diffusion stage: from a split to what trains, its ranks and its scores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdrec_jax import training
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.batches import blocks, extend_train
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.denoiser import Params, make_denoiser, structure
from pdrec_jax.diffusion.inference import DiffusionModel, couple, score_all
from pdrec_jax.diffusion.preferences import PoolRules, Preferences, compute_preferences
from pdrec_jax.diffusion.ranking import Evaluation, gatherer
from pdrec_jax.diffusion.schedule import Schedule, make_schedule
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.diffusion.vectors import (
    InteractionVectors,
    build_vectors,
)
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import Candidates, Protocol
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.sharding import DATA, abstract, axis, made_in_place, round_up

_score = jax.jit(score_all, static_argnums=(0, 6))


def make_model(config: ConfigDict, split: Split) -> tuple[DiffusionModel, Any]:
    """Builds the model of a config, and a function that initialises its parameters.

    Args:
      config: section ``diffusion`` with ``seed``.
      split: gives the number of slots: the padding id, the target items and, with
        ``source_slots``, the source items, which stay empty.
    """
    return model_of_slots(config, num_slots(config, split))


def model_of_slots(config: ConfigDict, slots: int) -> tuple[DiffusionModel, Any]:
    """The same from the number of slots alone.

    Args:
      config: section ``diffusion`` with ``seed``.
      slots: I.

    Raises:
      UserError: see ``schedule_of``.
    """
    schedule = schedule_of(config, slots)
    make = functools.partial(
        make_denoiser,
        slots,
        tuple(config.hidden),
        config.embedding_size,
        normalise=config.normalise,
        seed=config.seed,
    )
    graph = structure(make)
    model = DiffusionModel(
        graph,
        slots,
        schedule,
        target=config.target,
        reweight=config.reweight,
        dropout=config.dropout,
        normalise=config.normalise,
        sampling_steps=config.sampling_steps,
        sampling_noise=config.sampling_noise,
        noise_fraction=config.noise_fraction,
        error_fraction=config.error_fraction,
    )
    return model, jax.jit(lambda: make()[1])


def num_slots(config: ConfigDict, split: Split) -> int:
    """The padding id, the target items and, with ``source_slots``, the source items."""
    return 1 + split.train.num_items + (split.num_source_items if config.source_slots else 0)


def schedule_of(config: ConfigDict, slots: int) -> Schedule:
    """The schedule of a model, whose config is checked by the way; nothing is allocated.

    Args:
      config: section ``diffusion``.
      slots: I.

    Raises:
      UserError: noise that makes no schedule, or that leaves nothing of the data where the noise is
        what the denoiser predicts; windows of less than a slot.
    """
    schedule = make_schedule(
        config.schedule,
        config.steps,
        noise_scale=config.noise_scale,
        noise_min=config.noise_min,
        noise_max=config.noise_max,
    )
    if config.target == "epsilon" and schedule.alpha_bars[-1] == 0:
        raise UserError(
            "config.diffusion.noise_max: with target 'epsilon' less noise is expected, for the "
            f"last step keeps nothing of the data, got {config.noise_max:g} at noise_scale "
            f"{config.noise_scale:g}"
        )
    for name in ("noise_fraction", "error_fraction"):
        if 1 / config[name] > slots + 0.5:  # as windows are counted, rounded
            raise UserError(
                f"config.diffusion.{name}: a window of one slot at least is expected, 1 / "
                f"{slots:,} of all, got {config[name]:g}"
            )
    return schedule


def _on_mesh(
    model: DiffusionModel, initialise: Callable[[], Params], mesh: Mesh | None
) -> tuple[DiffusionModel, Callable[[], Params]]:
    """The model and the initialisation of a mesh; those of one device for None."""
    if mesh is None:
        return model, initialise
    return dataclasses.replace(model, mesh=mesh), made_in_place(initialise, mesh)


def vectors_of(
    config: ConfigDict, split: Split, num_slots: int, *, heldin: bool
) -> InteractionVectors:
    """Builds every user's interaction vector.

    Args:
      config: section ``diffusion``.
      split: the data.
      num_slots: I.
      heldin: add the validation item, as the test's input does.
    """
    offsets, items, times = (
        extend_train(split)
        if heldin
        else (
            split.train.offsets,
            split.train.items,
            split.train.times,
        )
    )
    return build_vectors(
        offsets,
        items,
        times if config.weighting == "time" else None,
        num_slots,
        w_min=config.w_min,
        w_max=config.w_max,
        ties=config.ties,
    )


def build(
    config: ConfigDict,
    split: Split,
    users: np.ndarray,
    *,
    protocol: Protocol,
    candidates: Candidates,
    validation: Candidates,
    mesh: Mesh | None = None,
) -> tuple[DiffusionTask, dict[str, Evaluation | None]]:
    """Builds the training task of a split, and what ranks its users.

    Args:
      config: section ``diffusion`` with ``seed``.
      split: the data.
      users: [U] bool, who is drawn and ranked.
      protocol: what chooses the epoch.
      candidates: [U, 1 + N] of the test item.
      validation: [U, 1 + N] of the validation item, unused where the test chooses the epoch.
      mesh: of the devices, None for one.

    Returns:
      the task; scorers ``test`` and ``validation`` (None where the test chooses the epoch).
    """
    model, initialise = _on_mesh(*make_model(config, split), mesh)
    index = np.flatnonzero(users)
    train = vectors_of(config, split, model.num_slots, heldin=False)
    extended = extend_train(split)

    def scorer(vectors: InteractionVectors, table: Candidates, seen: Any) -> Evaluation:
        return Evaluation(
            model=model,
            vectors=vectors,
            users=index,
            candidates=table,
            seen=seen,
            half_ties=protocol.half_ties,
            seed=config.seed,
            block=config.block,
            num_items=split.train.num_target_items,
        )

    test = scorer(vectors_of(config, split, model.num_slots, heldin=True), candidates, extended[:2])
    valid = None
    if not protocol.select_on_test:
        valid = scorer(train, validation, (split.train.offsets, split.train.items))
    steps = -(-split.train.num_users // config.batch_size)
    task = DiffusionTask(config, model, initialise, train, index, valid or test, steps)
    return task, {"test": test, "validation": valid}


def loop_settings(
    config: ConfigDict, save_seconds: float, *, save_behind: bool = False
) -> training.LoopSettings:
    """When the stage evaluates, stops and saves."""
    return training.LoopSettings(
        epochs=config.epochs,
        patience=config.patience,
        evaluate_every=config.evaluate_every,
        save_seconds=save_seconds,
        save_behind=save_behind,
    )


def infer_preferences(
    config: ConfigDict,
    split: Split,
    users: np.ndarray,
    rules: PoolRules,
    store: Store,
    log: MetricLog,
    *,
    exclude_heldout: bool,
    mesh: Mesh | None = None,
) -> Preferences:
    """Computes preferences with the trained model of a store.

    Args:
      config: section ``diffusion`` with ``seed``.
      split: the data.
      users: [U] bool, who gets preferences.
      rules: how the pools are cut.
      store: of the diffusion stage.
      log: shows progress.
      exclude_heldout: negatives leave out the held-out items too.
      mesh: of the devices, None for one.
    """
    model, initialise = _on_mesh(*make_model(config, split), mesh)
    params, _ = store.restore("best", abstract(initialise, mesh))
    vectors = vectors_of(config, split, model.num_slots, heldin=False)
    index = np.flatnonzero(users)
    block = round_up(config.block, axis(mesh, DATA))
    gather = gatherer(vectors, blocks(index, block), mesh)
    coupled, key = couple(model, params), jax.random.key(config.seed)
    # The source's slots take part in the loop; nobody asks for their scores.
    first = 1 + split.train.num_items

    def score_blocks(rows: np.ndarray) -> jax.Array:
        return _score(model, params, coupled, gather(rows), key, rows, first)

    with log.progress("preferences", len(index), "user") as bar:
        return compute_preferences(
            score_blocks,
            split,
            users,
            rules,
            exclude_heldout=exclude_heldout,
            seed=config.seed,
            block=block,
            advance=bar.update,
            mesh=mesh,
        )
