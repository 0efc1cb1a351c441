"""Training of the diffusion model, epoch by epoch, on one device or a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import memory, training
from pdrec_jax.data.batches import draw_users
from pdrec_jax.data.scratch import counts
from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.optimise import (
    make_optimiser,
    train_steps,
    train_steps_by_rows,
    train_steps_on,
    train_steps_on_windows,
)
from pdrec_jax.diffusion.ranking import Evaluation
from pdrec_jax.diffusion.sharded_optimise import train_steps_on_windows_on
from pdrec_jax.diffusion.sharded_vectors import place_batch, share_budget, shares
from pdrec_jax.diffusion.sharded_windows import HeldHead, place_head
from pdrec_jax.diffusion.step import training_loss, windowed_training_loss
from pdrec_jax.diffusion.timesteps import empty_history
from pdrec_jax.diffusion.vectors import (
    InteractionVectors,
    SparseBatch,
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
from pdrec_jax.row_adam import AdamW, Tails, tails
from pdrec_jax.sharding import abstract, made_in_place

_dense_loss = jax.jit(training_loss, static_argnums=(1, 4))
_windowed_loss = jax.jit(windowed_training_loss, static_argnums=(1, 5))
_STEPS_A_DISPATCH = 5  # the progress bar moves this often
_ROW_STEPS_A_DISPATCH = 512  # at most, and a signal waits for as long
_LOOKED_AHEAD = 8  # epochs whose batches decide the number of tokens
_TOKENS_SEED = 0  # of their draws


def steps_a_dispatch(steps: int, *, by_rows: bool) -> int:
    """How many of an epoch's steps go together.

    Args:
      steps: of an epoch.
      by_rows: whether a step moves the rows that it reads alone. Each dispatch then ends by moving
        all of them, so an epoch has as few pieces as may be.
    """
    if not by_rows:
        return min(_STEPS_A_DISPATCH, steps)
    return -(-steps // -(-steps // _ROW_STEPS_A_DISPATCH))


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
        stride, rate = self._steps_a_dispatch, training.learning_rate(self.config, epoch)
        gather = self._gatherer(self._draw(epoch))
        losses = [np.array(done, np.float32)]
        batches = gather(slice(len(done), len(done) + stride))
        for begin in range(len(done), self.steps, stride):
            end = min(begin + stride, self.steps)
            numbers = np.arange(begin, end) + (epoch - 1) * self.steps
            state, loss = self._train(state, batches, numbers, rate)
            if end < self.steps:  # the host gathers while the device works
                batches = gather(slice(end, end + stride))
            losses.append(np.asarray(loss))
            if advance(end - begin) and end < self.steps:
                raise training.Unfinished(state, np.concatenate(losses))
        memory.release()
        return state, training.epoch_values(np.concatenate(losses), rate)

    def _gatherer(self, users: np.ndarray) -> Callable[[slice], list[SparseBatch]]:
        """Returns what collects the vectors of some of an epoch's steps, in one shape for all.

        On a mesh a process gathers the users of its own places alone.

        Args:
          users: [steps, B] of the epoch.
        """
        mesh = self.model.mesh
        # A rare epoch that needs more gets its own, so that few shapes are ever compiled.
        tokens = [max(pair) for pair in zip(self._tokens(users), self._usual_tokens, strict=True)]
        if mesh is None:
            return lambda chunk: [
                jax.tree.map(
                    lambda *rows: np.stack(rows),
                    *(gather_batch(part, row, some) for row in users[chunk]),
                )
                for part, some in zip(self._parts, tokens, strict=True)
            ]
        own = shares(users, mesh)
        return lambda chunk: [
            place_batch(mesh, part, own[chunk], some)
            for part, some in zip(self._parts, tokens, strict=True)
        ]

    def _tokens(self, users: np.ndarray) -> list[int]:
        """Tokens of each part that all these batches fit in, [steps, B]; on a mesh a place's."""
        mesh = self.model.mesh
        if mesh is None:
            return [token_budget(part, users) for part in self._parts]
        own = shares(users, mesh)
        return [share_budget(part, own) for part in self._parts]

    def _train(
        self,
        state: dict[str, Any],
        batches: list[SparseBatch],
        numbers: np.ndarray,
        rate: float,
    ) -> tuple[dict[str, Any], jax.Array]:
        """Dispatches some steps, each on its batch."""
        config, model = self.config, self.model
        static = model, config.weight_decay, config.seed, config.batch_size
        if not model.windowed:
            train = train_steps if model.mesh is None else train_steps_on
            return train(state, batches[0], numbers, rate, *static)
        given = state, SplitBatch(*batches), numbers, rate
        if model.mesh is not None:
            return train_steps_on_windows_on(*given, self._held_head, self._tails, *static)
        if model.error_fraction < 1:
            return train_steps_by_rows(*given, self._head, self._tails, *static)
        return train_steps_on_windows(*given, self._head, *static)

    @functools.cached_property
    def _usual_tokens(self) -> list[int]:
        """``_tokens`` of nearly every epoch, one for all seeds: they share what is compiled."""
        ahead = range(1, _LOOKED_AHEAD + 1)
        found = (self._tokens(self._draw(epoch, _TOKENS_SEED)) for epoch in ahead)
        return [max(some) for some in zip(*found, strict=True)]

    @functools.cached_property
    def _held_head(self) -> HeldHead:
        assert self.model.mesh is not None
        return place_head(self._head, self.model.mesh)

    @property
    def _steps_a_dispatch(self) -> int:
        return steps_a_dispatch(self.steps, by_rows=self.model.error_fraction < 1)

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

    def _draw(self, epoch: int, seed: int | None = None) -> np.ndarray:
        """The users of an epoch's batches, [steps, B]; nothing but seed and epoch decide them."""
        config = self.config
        return draw_users(
            self.users,
            (self.steps, config.batch_size),
            seed=(config.seed if seed is None else seed, 1, epoch),
            repeat=config.batch_repeat,
        )

    @functools.cached_property
    def _head(self) -> Head:
        """The most popular slots, as many as a window of the error has."""
        slots, fraction = self.model.num_slots, self.model.error_fraction
        return choose_head(counts(self.vectors.slots, slots), size_of_head(slots, fraction))

    @functools.cached_property
    def _parts(self) -> tuple[InteractionVectors, ...]:
        """The vectors, on windows those of the head and the others apart."""
        return split_vectors(self.vectors, self._head) if self.model.windowed else (self.vectors,)

    @functools.cached_property
    def _tails(self) -> Tails:
        config = self.config
        rates = training.learning_rate(config, np.arange(1, config.epochs + 1))
        return tails(AdamW(decay=config.weight_decay), np.repeat(rates, self.steps))

    def parameters(self, state: dict[str, Any]) -> Params:
        """Returns the parameters of a state."""
        return state["params"]

    def evaluate(self, params: Params) -> float:
        """Returns the selection metric."""
        return self.scorer.sampled(params).metrics().get(SELECTION, 0.0)
