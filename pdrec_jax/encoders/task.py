"""Training of an encoder, epoch by epoch, on one device or a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import training
from pdrec_jax.data.batches import draw_users, enough_rows, pack
from pdrec_jax.diffusion.redraw import Redraws
from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    TrainingData,
)
from pdrec_jax.encoders.on_mesh import event_budget, of_steps, train_steps_on
from pdrec_jax.encoders.optimise import (
    caught_up_state,
    current_params,
    train_epoch,
    train_epoch_by_rows,
)
from pdrec_jax.encoders.ranking import Evaluation
from pdrec_jax.encoders.step import ADAM, OPTIMISER
from pdrec_jax.evaluation.metrics import SELECTION
from pdrec_jax.row_adam import (
    Tails,
    tails,
)
from pdrec_jax.sharding import abstract, made_in_place

_LOOKED_AHEAD = 8  # epochs whose layouts decide the number of rows
STEPS_ON_MESH = 8  # a dispatch
_ROWS_SEED = 0  # the seed of those epochs, one for all: equal shapes can train together


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderTask:
    """Training of one encoder, as ``training.Task``.

    Attributes:
      config: section ``encoder`` with ``seed``.
      model: static description.
      initialise: makes the parameters.
      data: resident on the device, of the first epoch.
      offsets: [U+1], CSR of the training events, on the host.
      users: [U'] the users that are drawn.
      scorer: evaluates the epoch.
      steps: steps an epoch.
      name: in the log.
      num_items: I; a mesh may fill the table up to more rows.
      by_batch: whether ``data`` stays on the host and each step is handed its own users', see
        ``on_mesh``.
      redraws: NNS's negatives of later epochs, None where those of ``data`` serve for all.
    """

    config: ConfigDict
    model: EncoderModel
    initialise: Any
    data: TrainingData
    offsets: np.ndarray
    users: np.ndarray
    scorer: Evaluation
    steps: int
    name: str
    num_items: int
    by_batch: bool = False
    redraws: Redraws | None = None
    _packed: dict[int, Batch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def initial(self) -> dict[str, Any]:
        """Returns parameters and optimiser state.

        Where the table of items is large also ``row_age`` int32, for each row the steps that it is
        up to date with; on a mesh too, so that a run can go on there, and come back.
        """

        def make() -> dict[str, Any]:
            params = self.initialise()
            state = {"params": params, "optimiser": OPTIMISER.init(params)}
            # Row by row a step has no gradient of a table that the encoder reads by itself.
            if self.num_items > self.config.row_adam_above and not self.model.reads_table:
                state["row_age"] = jnp.zeros(len(params["item_embedding"]), jnp.int32)
            return state

        return made_in_place(make, self.model.mesh)()

    def abstract(self) -> dict[str, Any]:
        """Returns shapes and places of ``initial``."""
        return abstract(self.initial, self.model.mesh)

    def _draw(self, epoch: int, seed: int | None = None) -> np.ndarray:
        config = self.config
        return draw_users(
            self.users,
            (self.steps, config.batch_size),
            seed=(config.seed if seed is None else seed, 2, epoch),
            repeat=config.batch_repeat,
        )

    def _rows(self, users: np.ndarray, least: tuple[int, ...] | None = None) -> tuple[int, ...]:
        model = self.model
        return enough_rows(self.offsets, users, model.max_length, model.layout, least)

    @functools.cached_property
    def _usual_rows(self) -> tuple[int, ...]:
        """Rows that nearly every epoch fits in, the same for every seed and after a resume."""
        ahead = range(1, _LOOKED_AHEAD + 1)
        return self._rows(np.concatenate([self._draw(epoch, _ROWS_SEED) for epoch in ahead]))

    @functools.cached_property
    def _tail(self) -> Tails:
        config = self.config
        rates = training.learning_rate(config, np.arange(1, config.epochs + 1))
        return tails(ADAM, np.repeat(rates, self.steps))

    def layout(self, epoch: int) -> Batch:
        """Draws and packs the batches of an epoch, arrays [steps, ...] on the host.

        Those of the last call are kept, for whoever asks again.
        """
        if epoch not in self._packed:
            self._packed.clear()
            self._packed[epoch] = self._pack(*self._drawn(epoch))
        return self._packed[epoch]

    def pack_ahead(self, epoch: int) -> None:
        """Packs the batches of the epoch after one, while the device works on that."""
        if epoch < self.config.epochs:
            self.layout(epoch + 1)

    def _drawn(self, epoch: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """The users of an epoch, [steps, B], and the rows that each of its batches fits in."""
        users = self._draw(epoch)
        # A rare epoch that needs more gets spare rows, so that few shapes are ever compiled.
        return users, self._rows(users, self._usual_rows)

    def _pack(self, users: np.ndarray, rows: tuple[int, ...], begin: int = 0) -> Batch:
        model, repeat = self.model, self.config.batch_repeat
        packed = [pack(self.offsets, row, model.max_length, rows, model.layout) for row in users]
        return Batch(
            users.astype(np.int32),
            tuple(np.stack(group) for group in zip(*(p.event for p in packed), strict=True)),
            tuple(np.stack(group) for group in zip(*(p.segment for p in packed), strict=True)),
            np.stack([p.last for p in packed]),
            users.astype(np.int32),
            (begin + np.arange(len(users), dtype=np.int32)) % repeat if repeat > 1 else None,
        )

    def data_of(self, epoch: int) -> TrainingData:
        """Returns the data of an epoch: ``data``, with the negatives that its turn draws."""
        if self.redraws is None:
            return self.data
        turn = self.redraws.turn(epoch)
        if turn == 0:
            return self.data
        return dataclasses.replace(self.data, pools=self.redraws.placed(turn))

    def clock(self, epoch: int) -> tuple[np.ndarray, float]:
        """Returns the numbers of an epoch's steps [steps] and its learning rate."""
        rate = training.learning_rate(self.config, epoch)
        return np.arange((epoch - 1) * self.steps, epoch * self.steps), rate

    def by_rows(self, state: dict[str, Any]) -> bool:
        """Whether the optimiser goes row by row, see ``row_adam``; by batch it never does."""
        return not self.by_batch and "row_age" in state

    def parameters(self, state: dict[str, Any]) -> Params:
        """Returns the parameters after the steps of a state."""
        return current_params(state, self._tail) if self.by_rows(state) else state["params"]

    def run_epoch(
        self,
        state: dict[str, Any],
        epoch: int,
        advance: training.Advance,
        done: Sequence[float] = (),
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Trains one epoch, or what is left of it, in one dispatch; see ``training.Task``.

        By batch it takes several, so that an epoch may have been left in its midst.
        """
        if self.by_batch:
            return self._run_epoch_by_batch(state, epoch, advance, done)
        config = self.config
        numbers, rate = self.clock(epoch)
        left = jax.tree.map(lambda leaf: leaf[len(done) :], self.layout(epoch))
        given = state, self.data_of(epoch), left, numbers[len(done) :], rate
        if self.by_rows(state):
            state, losses = train_epoch_by_rows(*given, self._tail, self.model, config.seed)
        else:
            state, losses = train_epoch(*given, self.model, config.seed)
        self.pack_ahead(epoch)
        every = np.concatenate([np.array(done, np.float32), np.asarray(losses)])
        advance(self.steps - len(done))
        return state, training.epoch_values(every, rate)

    def _run_epoch_by_batch(
        self,
        state: dict[str, Any],
        epoch: int,
        advance: training.Advance,
        done: Sequence[float],
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """``run_epoch`` of a few steps a dispatch, each with its users' data."""
        numbers, rate = self.clock(epoch)
        if "row_age" in state and int(jnp.min(state["row_age"])) < numbers[len(done)]:
            state = caught_up_state(state, self._tail, self.model.mesh)  # it went by rows
        (users, rows), losses = self._drawn(epoch), [np.array(done, np.float32)]
        budget = max(event_budget(self.offsets, users), self._usual_events)
        whole = self.data_of(epoch)

        def cut_out(begin: int) -> tuple[TrainingData, Batch]:
            batches = self._pack(users[begin : begin + STEPS_ON_MESH], rows, begin)
            return of_steps(whole, batches, budget)

        data, batches = cut_out(len(done))
        for begin in range(len(done), self.steps, STEPS_ON_MESH):
            end = begin + STEPS_ON_MESH
            given = state, data, batches, numbers[begin:end], rate
            state, loss = train_steps_on(*given, self.model, self.config.seed)
            if end < self.steps:  # the host cuts out while the device works
                data, batches = cut_out(end)
            losses.append(np.asarray(loss))
            if advance(len(losses[-1])) and end < self.steps:
                raise training.Unfinished(state, np.concatenate(losses))
        return state, training.epoch_values(np.concatenate(losses), rate)

    @functools.cached_property
    def _usual_events(self) -> int:
        """Events that nearly every batch fits in."""
        ahead = range(1, _LOOKED_AHEAD + 1)
        draws = np.stack([self._draw(epoch, _ROWS_SEED) for epoch in ahead])
        return event_budget(self.offsets, draws)

    def evaluate(self, params: Params) -> float:
        """Returns the selection metric."""
        return self.scorer.sampled(params).metrics().get(SELECTION, 0.0)
