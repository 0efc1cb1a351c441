"""The diffusion stage: from a split to a trained model, its ranks and its scores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdrec_jax import memory, training
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.batches import draw_users, extend_train
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.denoiser import Params, make_denoiser, structure
from pdrec_jax.diffusion.inference import DiffusionModel, couple, score_all
from pdrec_jax.diffusion.optimise import (
    make_optimiser,
    train_steps,
    train_steps_by_rows,
    train_steps_on,
    train_steps_on_windows,
)
from pdrec_jax.diffusion.preferences import PoolRules, Preferences, compute_preferences
from pdrec_jax.diffusion.ranking import Evaluation, blocks, gatherer
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.diffusion.sharded_optimise import train_steps_on_windows_on
from pdrec_jax.diffusion.sharded_vectors import place_batch, share_budget, shares
from pdrec_jax.diffusion.sharded_windows import HeldHead, place_head
from pdrec_jax.diffusion.step import training_loss, windowed_training_loss
from pdrec_jax.diffusion.timesteps import empty_history
from pdrec_jax.diffusion.vectors import (
    InteractionVectors,
    build_vectors,
    gather_batch,
    token_budget,
)
from pdrec_jax.diffusion.windows import (
    Head,
    SplitBatch,
    choose_head,
    size_of_head,
    split_vectors,
)
from pdrec_jax.evaluation.metrics import SELECTION
from pdrec_jax.evaluation.protocol import Protocol
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.row_adam import AdamW, Tails, tails
from pdrec_jax.sharding import DATA, abstract, axis, made_in_place, round_up

_dense_loss = jax.jit(training_loss, static_argnums=(1, 4))
_windowed_loss = jax.jit(windowed_training_loss, static_argnums=(1, 5))
_STEPS_A_DISPATCH = 5  # the progress bar moves this often
_LOOKED_AHEAD = 8  # epochs whose batches decide the number of tokens


def make_model(config: ConfigDict, split: Split) -> tuple[DiffusionModel, Any]:
    """Builds the model of a config, and a function that initialises its parameters.

    Args:
      config: section ``diffusion`` with ``seed``.
      split: gives the number of slots: the padding id, the target items and, with
        ``source_slots``, the source items, which stay empty.
    """
    slots = 1 + split.train.num_items + (split.num_source_items if config.source_slots else 0)
    return model_of_slots(config, slots)


def model_of_slots(config: ConfigDict, slots: int) -> tuple[DiffusionModel, Any]:
    """The same from the number of slots alone.

    Args:
      config: section ``diffusion`` with ``seed``.
      slots: I.
    """
    schedule = make_schedule(
        config.schedule,
        config.steps,
        noise_scale=config.noise_scale,
        noise_min=config.noise_min,
        noise_max=config.noise_max,
    )
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


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionTask:
    """Training of the diffusion model, as ``training.Task``.

    Attributes:
      config: section ``diffusion`` with ``seed``.
      model: static description.
      initialise: makes the parameters.
      vectors: training vectors of all users.
      users: [U'] the users that are drawn.
      scorer: evaluates the epoch.
      steps: steps an epoch.
      name: in the log.
    """

    config: ConfigDict
    model: DiffusionModel
    initialise: Any
    vectors: InteractionVectors
    users: np.ndarray
    scorer: Evaluation
    steps: int
    name: str = "diffusion"

    def initial(self) -> dict[str, Any]:
        """Returns parameters, optimiser state and loss history."""

        def make() -> dict[str, Any]:
            params = self.initialise()
            return {
                "params": params,
                "optimiser": make_optimiser(self.config.weight_decay).init(params),
                "history": empty_history(self.config.steps),
            }

        return made_in_place(make, self.model.mesh)()

    def abstract(self) -> dict[str, Any]:
        """Returns shapes and places of ``initial``."""
        return abstract(self.initial, self.model.mesh)

    def run_epoch(
        self,
        state: dict[str, Any],
        epoch: int,
        advance: training.Advance,
        done: Sequence[float] = (),
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Trains one epoch in a few dispatches, see ``training.Task``."""
        if self.model.mesh is not None:
            return self._run_epoch_on(self.model.mesh, state, epoch, advance, done)
        config, users = self.config, self._draw(epoch)
        # A rare epoch that needs more gets its own, so that few shapes are ever compiled.
        tokens = [
            max(token_budget(vectors, users), usual)
            for vectors, usual in zip(self._parts, self._usual_tokens, strict=True)
        ]
        rate = config.learning_rate * config.learning_rate_decay ** (epoch - 1)
        losses = [np.array(done, np.float32)]
        by_rows, stride = self.model.error_fraction < 1, self._steps_a_dispatch
        for begin in range(len(done), self.steps, stride):
            chunk = users[begin : begin + stride]
            batches = [
                [gather_batch(vectors, row, some) for row in chunk]
                for vectors, some in zip(self._parts, tokens, strict=True)
            ]
            parts = [jax.tree.map(lambda *rows: np.stack(rows), *some) for some in batches]
            numbers = np.arange(len(chunk)) + (epoch - 1) * self.steps + begin
            static = self.model, config.weight_decay, config.seed, config.batch_size
            if by_rows:
                given = state, SplitBatch(*parts), numbers, rate, self._head, self._tails
                state, loss = train_steps_by_rows(*given, *static)
            elif self.model.windowed:
                split = SplitBatch(*parts)
                state, loss = train_steps_on_windows(
                    state, split, numbers, rate, self._head, *static
                )
            else:
                state, loss = train_steps(state, parts[0], numbers, rate, *static)
            losses.append(np.asarray(loss))
            if advance(len(chunk)) and begin + stride < self.steps:
                raise training.Unfinished(state, np.concatenate(losses))
        memory.release()
        return state, training.epoch_values(np.concatenate(losses), rate)

    def _run_epoch_on(
        self,
        mesh: Mesh,
        state: dict[str, Any],
        epoch: int,
        advance: training.Advance,
        done: Sequence[float],
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """``run_epoch`` on a mesh, whose processes gather the users of their own places alone."""
        config, users = self.config, shares(self._draw(epoch), mesh)
        tokens = [
            max(share_budget(vectors, users), usual)
            for vectors, usual in zip(self._parts, self._usual_shares, strict=True)
        ]
        rate = config.learning_rate * config.learning_rate_decay ** (epoch - 1)
        losses = [np.array(done, np.float32)]
        stride = self._steps_a_dispatch
        for begin in range(len(done), self.steps, stride):
            chunk = users[begin : begin + stride]
            batches = [
                place_batch(mesh, vectors, chunk, some)
                for vectors, some in zip(self._parts, tokens, strict=True)
            ]
            numbers = np.arange(len(chunk)) + (epoch - 1) * self.steps + begin
            static = self.model, config.weight_decay, config.seed, config.batch_size
            if self.model.windowed:
                given = state, SplitBatch(*batches), numbers, rate, self._held_head, self._tails
                state, loss = train_steps_on_windows_on(*given, *static)
            else:
                state, loss = train_steps_on(state, batches[0], numbers, rate, *static)
            losses.append(np.asarray(loss))
            if advance(len(chunk)) and begin + stride < self.steps:
                raise training.Unfinished(state, np.concatenate(losses))
        return state, training.epoch_values(np.concatenate(losses), rate)

    @functools.cached_property
    def _usual_shares(self) -> list[int]:
        """``_usual_tokens`` of a place on a mesh."""
        assert self.model.mesh is not None
        draws = np.stack([self._draw(epoch) for epoch in range(1, _LOOKED_AHEAD + 1)])
        users = shares(draws, self.model.mesh)
        return [share_budget(part, users) for part in self._parts]

    @functools.cached_property
    def _held_head(self) -> HeldHead:
        assert self.model.mesh is not None
        return place_head(self._head, self.model.mesh)

    @property
    def _steps_a_dispatch(self) -> int:
        # By rows an epoch goes in one piece, since each dispatch ends by moving every row.
        return self.steps if self.model.error_fraction < 1 else _STEPS_A_DISPATCH

    def loss(self, state: dict[str, Any], users: np.ndarray, key: jax.Array) -> jax.Array:
        """The mean loss of one batch before division by p, as a training step has it.

        Args:
          state: of the training.
          users: [B].
          key: of the step.
        """
        parts = [gather_batch(part, users, token_budget(part, users)) for part in self._parts]
        given = state["params"], self.model
        if self.model.windowed:
            batch = SplitBatch(*parts)
            _, (_, mean) = _windowed_loss(
                *given, self._head, state["history"], batch, len(users), key
            )
        else:
            _, (_, mean) = _dense_loss(*given, state["history"], parts[0], len(users), key)
        return mean

    def _draw(self, epoch: int) -> np.ndarray:
        """The users of an epoch's batches, [steps, B]; nothing but seed and epoch decide them."""
        config = self.config
        return draw_users(
            self.users,
            (self.steps, config.batch_size),
            seed=(config.seed, 1, epoch),
            repeat=config.batch_repeat,
        )

    @functools.cached_property
    def _head(self) -> Head:
        """The most popular slots, as many as a window of the error has."""
        slots, fraction = self.model.num_slots, self.model.error_fraction
        counts = np.bincount(self.vectors.slots, minlength=slots)
        return choose_head(counts, size_of_head(slots, fraction))

    @functools.cached_property
    def _parts(self) -> tuple[InteractionVectors, ...]:
        """The vectors, on windows those of the head and the others apart."""
        return split_vectors(self.vectors, self._head) if self.model.windowed else (self.vectors,)

    @functools.cached_property
    def _usual_tokens(self) -> list[int]:
        """Tokens of each part that nearly every epoch's batches fit in."""
        drawn = [self._draw(epoch) for epoch in range(1, _LOOKED_AHEAD + 1)]
        return [max(token_budget(part, users) for users in drawn) for part in self._parts]

    @functools.cached_property
    def _tails(self) -> Tails:
        config = self.config
        rates = config.learning_rate * config.learning_rate_decay ** np.arange(config.epochs)
        return tails(AdamW(decay=config.weight_decay), np.repeat(rates, self.steps))

    def evaluate(self, params: Params) -> float:
        """Returns the selection metric."""
        return self.scorer.sampled(params).metrics().get(SELECTION, 0.0)


def build(
    config: ConfigDict,
    split: Split,
    users: np.ndarray,
    *,
    protocol: Protocol,
    candidates: np.ndarray,
    validation: np.ndarray,
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

    def scorer(vectors: InteractionVectors, table: np.ndarray, seen: Any) -> Evaluation:
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


def loop_settings(config: ConfigDict, save_seconds: float) -> training.LoopSettings:
    """When the stage evaluates, stops and saves."""
    return training.LoopSettings(
        epochs=config.epochs,
        patience=config.patience,
        evaluate_every=config.evaluate_every,
        save_seconds=save_seconds,
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
    score = jax.jit(score_all, static_argnums=(0, 6))
    # The source's slots take part in the loop; nobody asks for their scores.
    first = 1 + split.train.num_items

    def score_blocks(rows: np.ndarray) -> jax.Array:
        return score(model, params, coupled, gather(rows), key, rows, first)

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
