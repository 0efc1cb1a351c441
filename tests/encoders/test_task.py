"""What an encoder's epochs are made of: their batches, and the training on them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.redraw import unpacked
from pdrec_jax.encoders import task as task_module
from pdrec_jax.encoders.optimise import caught_up_state, train_epoch
from pdrec_jax.encoders.step import step_keys
from pdrec_jax.encoders.step_inputs import step_inputs
from pdrec_jax.encoders.task import EncoderTask


class Losses:
    """Losses of a dispatch, which note that they are read."""

    def __init__(self, losses, order):
        self.losses, self.order = losses, order

    def __array__(self, *args, **kwargs):
        self.order.append("read")
        return np.asarray(self.losses)


def spied(monkeypatch, order, **places):
    """Notes the calls of functions in `order`, and after `train` the reading of its losses."""

    def noting(name, original):
        def noted(*args):
            order.append(name)
            made = original(*args)
            return (made[0], Losses(made[1], order)) if name == "train" else made

        return noted

    for name, (owner, attribute) in places.items():
        monkeypatch.setattr(owner, attribute, noting(name, getattr(owner, attribute)))


class TestLayout:
    def test_it_depends_on_seed_and_epoch_alone(self, built):
        task, other = built(), built(encoder__learning_rate=0.5)
        late = task.layout(7)
        for epoch in (1, 7):
            left, right = task.layout(epoch), other.layout(epoch)
            jax.tree.map(np.testing.assert_array_equal, left, right)
        jax.tree.map(np.testing.assert_array_equal, late, task.layout(7))
        assert (task.layout(1).users != late.users).any()
        assert (built(seed=1).layout(1).users != task.layout(1).users).any()

    def test_shapes_repeat(self, built):
        task = built()
        shapes = {
            str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), task.layout(epoch)))
            for epoch in range(1, 41)
        }
        # The usual one, and one more where an epoch needs spare rows.
        assert len(shapes) <= 2

    def test_every_step_holds_its_users(self, built, world):
        task = built()
        batch = task.layout(3)
        assert batch.users.shape == (task.steps, 8)
        assert task.steps == -(-world.split.train.num_users // 8)
        assert set(batch.users.ravel()) <= set(task.users)
        ends = world.split.train.offsets[1:]
        for users, event, last in zip(batch.users, batch.event[0], batch.last, strict=True):
            assert event.reshape(-1)[last].tolist() == (ends[users] - 1).tolist()

    def test_batches_delivered_three_times(self, built):
        """Users and negatives come again, dropout does not."""
        task = built(encoder__batch_repeat=3, encoder__dropout=0.1)
        layout, params = task.layout(2), task.initial()["params"]
        users, numbers = layout.users, task.clock(2)[0]
        np.testing.assert_array_equal(users[0], users[1])
        np.testing.assert_array_equal(users[0], users[2])
        assert (users[2] != users[3]).any()
        steps = []
        for place in range(4):
            batch = jax.tree.map(lambda leaf, place=place: jnp.asarray(leaf[place]), layout)
            keys = step_keys(jax.random.key(0), numbers[place], batch)
            steps.append(step_inputs(params, task.model, task.data, batch, *keys))
        for step in steps[1:3]:
            np.testing.assert_array_equal(step.ids["uniform"], steps[0].ids["uniform"])
        assert (steps[3].ids["uniform"] != steps[0].ids["uniform"]).any()
        assert len({tuple(np.asarray(jax.random.key_data(step.key))) for step in steps}) == 4

    def test_what_is_drawn_comes_again_with_its_batch(self, built):
        """Safe negatives and drawn positives too; views, as dropout, are drawn anew."""
        task = built(
            "nns+dpa",
            encoder__name="cl4srec",
            encoder__batch_repeat=2,
            encoder__history_weight=0.1,
            dpa__drawn=1,
        )
        layout, params = task.layout(1), task.initial()["params"]
        steps = []
        for number in range(2):
            batch = jax.tree.map(lambda leaf, number=number: jnp.asarray(leaf[number]), layout)
            keys = step_keys(jax.random.key(0), jnp.int32(number), batch)
            steps.append(step_inputs(params, task.model, task.data, batch, *keys))
        for name in ("positive", "uniform", "safe", "likely", "history"):
            np.testing.assert_array_equal(steps[1].ids[name], steps[0].ids[name])
        assert (steps[1].ids["rows0"] != steps[0].ids["rows0"]).any()

    def test_a_part_of_an_epoch_knows_which_batches_come_again(self, built):
        task = built(encoder__batch_repeat=3)
        users, rows = task._drawn(1)
        whole, part = task._pack(users, rows), task._pack(users[2:], rows, 2)
        np.testing.assert_array_equal(part.again, whole.again[2:])
        assert whole.again[:4].tolist() == [0, 1, 2, 0]


@pytest.mark.loose_jax("dtypes")  # optax's Adam
class TestEpochs:
    def test_training(self, built, caplog):
        task = built(encoder__dropout=0.1, encoder__blocks=1)
        state, done = task.initial(), []
        with jax.log_compiles(), caplog.at_level("WARNING"):
            losses = self.losses(task, state)
            for epoch in (1, 2, 3):
                state, values = task.run_epoch(state, epoch, done.append)
                assert values["learning_rate"] == pytest.approx(0.01 * 0.99 ** (epoch - 1))
                if epoch == 1:
                    after = self.losses(task, state)
        assert done == [task.steps] * 3
        # Same batches, same draws: one epoch lowered the loss of nearly all.
        assert after.mean() < 0.95 * losses.mean()
        assert (after < losses).mean() > 0.8
        shapes = {task.layout(epoch).event[0].shape for epoch in (1, 2, 3)}
        assert len(shapes) == 1
        compiled = [line for line in caplog.messages if line.startswith("Compiling jit(train")]
        assert len(compiled) == 1

        again = task.initial()
        for epoch in (1, 2, 3):
            again, repeated = task.run_epoch(again, epoch, lambda steps: None)
        assert repeated == values
        jax.tree.map(np.testing.assert_array_equal, again, state)

    def test_the_host_packs_the_next_epoch_while_the_device_works(self, built, monkeypatch):
        task = built(encoder__epochs=2)
        state, order = task.initial(), []
        spied(monkeypatch, order, pack=(EncoderTask, "_pack"), train=(task_module, "train_epoch"))
        for epoch in (1, 2):
            state, _ = task.run_epoch(state, epoch, lambda steps: None)
        # None after the last; the losses are read behind each.
        assert order == ["pack", "train", "pack", "read", "train", "read"]

    def test_the_host_cuts_out_the_next_steps_while_the_device_works(self, built, monkeypatch):
        task = dataclasses.replace(built(encoder__batch_size=1, encoder__blocks=1), by_batch=True)
        order = []
        spied(
            monkeypatch, order, cut=(task_module, "of_steps"), train=(task_module, "train_steps_on")
        )
        task.run_epoch(task.initial(), 1, lambda steps: None)
        dispatches = -(-task.steps // task_module.STEPS_ON_MESH)
        assert dispatches > 1
        middle = ["train", "cut", "read"] * (dispatches - 1)
        assert order == ["cut", *middle, "train", "read"]

    @pytest.mark.parametrize("above", [10**6, 1])
    def test_an_epoch_that_was_cut_on_a_mesh_is_ended(self, built, config, above):
        task = built(encoder__blocks=1, encoder__row_adam_above=above)
        whole, values = task.run_epoch(task.initial(), 1, lambda steps: None)
        numbers, rate = task.clock(1)
        first = jax.tree.map(lambda leaf: leaf[:1], task.layout(1))
        given = task.initial(), task.data, first, numbers[:1], rate
        state, losses = train_epoch(*given, task.model, task.config.seed)
        steps = []
        state, ended = task.run_epoch(state, 1, steps.append, [float(loss) for loss in losses])
        assert task.steps > 1
        assert steps == [task.steps - 1]
        assert ended["loss"] == pytest.approx(values["loss"], rel=1e-6)
        # Adam by rows rounds otherwise where a row catches up.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, task.parameters(state), task.parameters(whole))

    def test_negatives_are_drawn_anew(self, built, world):
        """Every second epoch, out of the user's whole pool; a run that goes on draws the same."""
        once, task = built("nns"), built("nns", nns__refresh_epochs=2)
        assert once.data_of(9).pools is once.data.pools
        assert all(task.data_of(epoch).pools is task.data.pools for epoch in (1, 2))
        third, fifth = (np.asarray(task.data_of(epoch).pools) for epoch in (3, 5))
        np.testing.assert_array_equal(task.data_of(4).pools, third)
        marks = unpacked(world.preferences.pools, 200)
        for pools in (third, fifth):
            assert np.take_along_axis(marks, pools - 1, axis=1).all()
            assert (np.sort(pools) != np.sort(world.preferences.negatives)).any(axis=1).all()
        assert (third != fifth).any(axis=1).all()

        outcomes = []
        for made in (once, task):
            state, losses = made.initial(), []
            for epoch in (1, 2, 3):
                before = jax.tree.map(np.asarray, state)
                state, values = made.run_epoch(state, epoch, lambda steps: None)
                losses.append(values["loss"])
            outcomes.append((before, state, losses))
        (_, _, losses), (before, after, anew) = outcomes
        assert anew[:2] == losses[:2]
        assert anew[2] != losses[2]
        going_on = built("nns", nns__refresh_epochs=2)
        state, values = going_on.run_epoch(jax.device_put(before), 3, lambda steps: None)
        assert values["loss"] == anew[2]
        jax.tree.map(np.testing.assert_array_equal, state, after)

    @pytest.mark.parametrize(
        ("variant", "drawn"), [("base", 0), ("hbr+nns+dpa", 0), ("hbr+nns+dpa", 2)]
    )
    def test_adam_by_rows_equals_adam_on_the_whole_table(self, built, variant, drawn):
        """Over two epochs, which rows that are not read wait through."""
        outcomes = []
        for above in (10**6, 1):
            fields = {"encoder__blocks": 1, "encoder__row_adam_above": above, "dpa__drawn": drawn}
            task = built(variant, **fields)
            state = task.initial()
            for epoch in (1, 2):
                state, values = task.run_epoch(state, epoch, lambda steps: None)
            outcomes.append((values["loss"], state))
        (dense_loss, dense), (loss, rows) = outcomes
        assert loss == pytest.approx(dense_loss, rel=1e-5)
        assert rows["row_age"].min() < 2 * task.steps
        np.testing.assert_allclose(
            task.parameters(rows)["item_embedding"], dense["params"]["item_embedding"], atol=1e-3
        )
        rows = caught_up_state(rows, task._tail, None)
        assert (rows["row_age"] == 2 * task.steps).all()
        for name in ("mu", "nu"):
            found, expected = (getattr(s["optimiser"], name) for s in (rows, dense))
            jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-3),
            rows["params"],
            dense["params"],
        )
        moved = np.abs(
            rows["params"]["item_embedding"] - task.initial()["params"]["item_embedding"]
        )
        assert np.median(moved) > 0.02

    @staticmethod
    def losses(task: EncoderTask, state: dict) -> np.ndarray:
        """Losses of the first epoch's steps at a learning rate of 0; the state is not donated."""
        _, found = train_epoch(
            jax.tree.map(jnp.copy, state),
            task.data,
            task.layout(1),
            np.arange(task.steps),
            0.0,
            task.model,
            task.config.seed,
        )
        return np.asarray(found)

    def test_nobody_to_evaluate(self, built):
        task = built()
        scorer = dataclasses.replace(task.scorer, users=np.zeros(0, np.int64))
        assert dataclasses.replace(task, scorer=scorer).evaluate({}) == 0
