"""The encoder stage: from a split and preferences to what trains an encoder and ranks by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdrec_jax import training
from pdrec_jax.data import scratch
from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.negatives import complement_table
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.diffusion.redraw import Redraws
from pdrec_jax.encoders import contract, registry
from pdrec_jax.encoders.effects import plugin_effects
from pdrec_jax.encoders.model import (
    EncoderModel,
    Params,
    TrainingData,
)
from pdrec_jax.encoders.ranking import Evaluation
from pdrec_jax.encoders.task import EncoderTask
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import Candidates, Protocol
from pdrec_jax.plugins.hbr import behaviour_weights
from pdrec_jax.settings import seeded
from pdrec_jax.sharding import made_in_place

PLUGINS = ("hbr", "nns", "dpa")
_HBR_BLOCK = 4096


def parse_variant(variant: str) -> tuple[str, ...]:
    """Reads a variant: ``base``, or plugins joined by ``+`` in any order.

    Raises:
      UserError: an unknown or repeated plugin.
    """
    if variant == "base":
        return ()
    names = variant.split("+")
    if not set(names) <= set(PLUGINS) or len(set(names)) != len(names):
        raise UserError(
            f"config.encoder.variants: expected 'base' or some of {'+'.join(PLUGINS)}, "
            f"got {variant!r}"
        )
    return tuple(name for name in PLUGINS if name in names)


def title_of(config: ConfigDict, variant: str) -> str:
    """Names a variant as tables show it, ``SASRec+HBR+NNS+DPA``."""
    title, _ = registry.find(config.name)
    return "+".join([title, *(name.upper() for name in parse_variant(variant))])


_behaviour_weights = jax.jit(
    behaviour_weights, static_argnames=("rank_weight", "clip", "scale", "floor", "max_length")
)


def hbr_weights(
    config: ConfigDict, split: Split, preferences: Preferences, floor: str, max_length: int
) -> np.ndarray:
    """HBR's weight of each training event as a target, [E] float32.

    Only the last ``max_length`` events of a user but the first are targets, and of those only the
    items that are learnt; the others get 0.

    Args:
      config: section ``hbr``.
      split: the data.
      preferences: scores of the observed items.
      floor: see ``plugins.hbr``.
      max_length: L.
    """
    offsets, lengths = split.train.offsets, split.train.lengths
    zeros = scratch.zeros if split.train.mapped else np.zeros
    weights = zeros(split.train.num_events, np.float32)
    cells = np.arange(max_length)[None, :]
    for begin in range(0, len(lengths), _HBR_BLOCK):
        users = np.arange(begin, min(begin + _HBR_BLOCK, len(lengths)))
        count = np.minimum(lengths[users] - 1, max_length)[:, None]
        index = (offsets[1:][users][:, None] - count) + cells
        observed = cells < count
        index = np.minimum(index, len(weights) - 1)
        if not split.learns_source:
            observed = observed & (split.train.items[index] <= split.num_learnt_items)
        scores = preferences.observed[index]
        block = _behaviour_weights(
            scores,
            observed,
            rank_weight=config.rank_weight,
            clip=config.clip,
            scale=config.scale,
            floor=floor,
            padding=preferences.padding[users],
            max_length=max_length,
        )
        weights[index[observed]] = np.asarray(block)[observed]
    return weights


def make_model(
    config: ConfigDict, plugins: tuple[str, ...], num_items: int
) -> tuple[EncoderModel, Any]:
    """Builds the model of a config, and a function that initialises its parameters.

    Args:
      config: the whole config; sections ``encoder`` and ``dpa`` count.
      plugins: from ``parse_variant``.
      num_items: I.

    Raises:
      UserError: the encoder is not what ``encoder.Encoder`` asks for.
    """
    title, make_encoder = registry.find(config.encoder.name)
    found: dict[str, Any] = {}

    def make() -> tuple[Any, Params]:
        made = make_encoder(config.encoder, num_items, rngs=nnx.Rngs(params=config.seed))
        found["made"], found["layout"] = type(made), getattr(made, "layout", None)
        graph, state, *found["others"] = nnx.split(made, nnx.Param, ...)
        found["odd"] = contract.unhashable(made, graph)
        return graph, nnx.to_pure_dict(state)

    def trace() -> Params:
        found["graph"], params = make()
        return params

    def encoder(params: Params) -> Any:
        return nnx.merge(found["graph"], params)

    with contract.one_line(title, make_encoder):
        params = jax.eval_shape(trace)
        contract.require_kind(title, found["made"], found["others"], found["odd"])
        lengths = found["layout"].row_lengths(config.encoder.max_length)
        contract.require_states(title, encoder, params, lengths, num_items)
        # Ours are known to be right, and tracing them would take every command a second.
        reads_table = not contract.is_ours(make_encoder) and contract.require_step(
            title, encoder, params, lengths, config.encoder.batch_size
        )
    uniform, safe = count_negatives(config, plugins)
    model = EncoderModel(
        found["graph"],
        config.encoder.max_length,
        config.encoder.temperature,
        found["layout"],
        hbr="hbr" in plugins,
        nns=safe,
        dpa_fine=config.dpa.fine if "dpa" in plugins and not config.dpa.drawn else 0,
        dpa_drawn=config.dpa.drawn if "dpa" in plugins else 0,
        dpa_by_rank=config.dpa.draw_by == "rank" and "dpa" in plugins and config.dpa.drawn > 0,
        dpa_weight=config.dpa.weight if "dpa" in plugins else 0.0,
        negatives=uniform,
        positive_weight=config.encoder.positive_weight,
        history_weight=config.encoder.history_weight,
        reads_table=reads_table,
    )
    return model, jax.jit(lambda: make()[1])


def count_negatives(config: ConfigDict, plugins: Collection[str]) -> tuple[int, int]:
    """Returns how many uniform and how many safe negatives a position has.

    Args:
      config: the whole config.
      plugins: of a variant.
    """
    uniform, safe = config.encoder.negatives, config.nns.drawn
    if "nns" not in plugins:
        return uniform, 0
    return uniform - safe * (config.nns.placement == "instead"), safe


def by_batch(split: Split, mesh: Mesh | None) -> bool:
    """Whether each step is handed its own users' data, in place of a device that holds them all."""
    return mesh is not None or split.train.mapped


def training_data(
    config: ConfigDict,
    split: Split,
    preferences: Preferences | None,
    model: EncoderModel,
    floor: str,
) -> TrainingData:
    """Puts what the steps read on the device; plugins that are off get arrays of size 1.

    On a mesh, or of a mapped log, it stays on the host, see ``on_mesh``.

    Raises:
      UserError: a plugin is on and there are no preferences; more events than a device counts.
    """
    train = split.train
    if preferences is None and (model.hbr or model.nns or model.dpa):
        raise UserError("encoder: plugins need preferences, and there are none")
    none = np.zeros((1, 1), np.int32)
    weights, pools, candidates = np.zeros(1, np.float32), none, none
    if preferences is not None:
        if model.hbr:
            weights = hbr_weights(config.hbr, split, preferences, floor, model.max_length)
        pools = preferences.negatives if model.nns else none
        candidates = preferences.candidates if model.dpa else none
    on_host = by_batch(split, model.mesh)
    if not on_host and train.num_events > np.iinfo(np.int32).max:
        raise UserError(
            f"the log has {train.num_events:,} events, and those of a device are counted in 32 "
            "bits; prepare it with --mapped, or set config.mesh"
        )
    array: Any = np.asarray if on_host else jnp.asarray
    return TrainingData(
        # Events are counted in 32 bits on a device, which then sees those of a batch alone.
        array(train.offsets, np.int64 if on_host else np.int32),
        array(train.items),
        complement_table(
            train.offsets,
            train.items,
            split.num_learnt_items,
            user_ids=train.user_ids,
            on_host=on_host,
        ),
        array(weights),
        array(pools),
        array(candidates),
    )


def build(
    config: ConfigDict,
    variant: str,
    split: Split,
    preferences: Preferences | None,
    *,
    drawn: np.ndarray,
    ranked: np.ndarray,
    protocol: Protocol,
    candidates: Candidates,
    validation: Candidates,
    name: str,
    mesh: Mesh | None = None,
) -> tuple[EncoderTask, dict[str, Evaluation | None]]:
    """Builds the training task of one variant, and what ranks its users.

    Args:
      config: the whole config.
      variant: see ``parse_variant``.
      split: the data.
      preferences: of the diffusion stage; None for ``base``.
      drawn: [U] bool, whose histories train the encoder.
      ranked: [U] bool, who is evaluated.
      protocol: HBR's floor, and what chooses the epoch.
      candidates: [U, 1 + N] of the test item.
      validation: [U, 1 + N] of the validation item, unused where the test chooses the epoch.
      name: in the log.
      mesh: of the devices, None for one.

    Returns:
      the task; scorers ``test`` and ``validation`` (None where the test chooses the epoch).
    """
    section = seeded(config, "encoder")
    model, initialise = make_model(config, parse_variant(variant), split.train.num_items)
    if not split.learns_source:
        model = dataclasses.replace(model, num_learnt=split.num_learnt_items)
    if mesh is not None:
        model, initialise = dataclasses.replace(model, mesh=mesh), made_in_place(initialise, mesh)
    data = training_data(config, split, preferences, model, protocol.hbr_floor)
    index = np.flatnonzero(ranked)
    # Plugins and negatives end with training: without them in the description, all variants share
    # their scorers' compiled code.
    plain = model.without_training()

    def scorer(offsets: np.ndarray, items: np.ndarray, table: Candidates) -> Evaluation:
        return Evaluation(
            model=plain,
            offsets=offsets,
            items=items,
            users=index,
            candidates=table,
            half_ties=protocol.half_ties,
            block=section.block,
            num_items=split.train.num_target_items,
            by_batch=by_batch(split, mesh),
        )

    test = scorer(*extend_train(split)[:2], candidates)
    valid = None
    if not protocol.select_on_test:
        valid = scorer(split.train.offsets, split.train.items, validation)
    steps = -(-len(index) // section.batch_size)
    redraws = None
    if model.nns and config.nns.refresh_epochs:
        assert preferences is not None
        assert preferences.pools is not None  # the rules they were made by say so
        redraws = Redraws(
            preferences.negatives,
            preferences.pools,
            config.nns.refresh_epochs,
            section.seed,
            np.asarray if by_batch(split, mesh) else jnp.asarray,
        )
    task = EncoderTask(
        section,
        model,
        initialise,
        data,
        split.train.offsets,
        np.flatnonzero(drawn),
        valid or test,
        steps,
        name,
        split.train.num_items,
        by_batch(split, mesh),
        redraws,
    )
    return task, {"test": test, "validation": valid}


def loop_settings(
    config: ConfigDict, save_seconds: float, *, save_behind: bool = False
) -> training.LoopSettings:
    """When the stage evaluates, stops and saves."""
    return training.LoopSettings(
        epochs=config.epochs,
        patience=config.patience,
        first_evaluation=config.first_evaluation,
        min_epochs=config.min_epochs,
        evaluate_every=config.evaluate_every,
        save_seconds=save_seconds,
        save_behind=save_behind,
    )


def effects(
    config: ConfigDict, split: Split, preferences: Preferences, floor: str
) -> dict[str, Any]:
    """What the plugins make of preferences, see ``encoders.effects``."""
    most = config.encoder.max_length
    weights = hbr_weights(config.hbr, split, preferences, floor, most)
    return plugin_effects(split, preferences, weights, config.hbr.clip, config.hbr.scale, most)
