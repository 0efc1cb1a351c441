"""CL4SRec: its views, its contrastive loss, and what they add to SASRec's step."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.encoders import stage
from pdrec_jax.encoders.cl4srec import augment, contrastive_loss, last_states
from pdrec_jax.encoders.layers import Rows
from pdrec_jax.encoders.model import TrainingData
from pdrec_jax.encoders.step import training_loss
from pdrec_jax.encoders.step_inputs import training_rows
from pdrec_jax.evaluation.protocol import STRICT

MOST, MASKED = 20, 1000
LENGTHS = (2, 3, 4, 8, 11, 20, 21, 30, 6, 1)


@pytest.fixture
def inputs(histories) -> SimpleNamespace:
    """Training inputs of some users, every item of which is another one."""
    offsets = np.cumsum([0, *LENGTHS])
    items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    batch = histories(offsets, items, np.arange(len(LENGTHS)), MOST).batch()
    data = SimpleNamespace(offsets=jnp.asarray(offsets, jnp.int32), items=jnp.asarray(items))
    (event,), (segment,) = batch.event, batch.segment
    return training_rows(data, batch.users, event, segment, MOST)[0]


def histories_of(rows: Rows) -> dict[int, list[int]]:
    """Items of each segment, in order."""
    found: dict[int, list[int]] = {user: [] for user in range(len(LENGTHS))}
    for segments, items in zip(np.asarray(rows.segment), np.asarray(rows.items), strict=True):
        for segment, item in zip(segments.tolist(), items.tolist(), strict=True):
            if item > 0:
                found[segment].append(item)
    return found


augment_jit = jax.jit(augment, static_argnums=(2, 3, 4))


class TestAugment:
    RATES = (0.6, 0.3, 0.6)

    def draws(self, inputs, rates=RATES, count=40):
        for seed in range(count):
            yield augment_jit(inputs, jax.random.key(seed), rates, MOST, MASKED)

    def kind(self, before: list[int], after: list[int]) -> str:
        """Checks a view against its history; says which operator made it."""
        n = len(before)
        if MASKED in after:
            assert len(after) == n
            assert all(new in (old, MASKED) for old, new in zip(before, after, strict=True))
            assert after.count(MASKED) == int(0.3 * n)
            return "mask"
        if len(after) < n:
            assert len(after) == max(int(0.6 * n), 1)
            assert after == before[before.index(after[0]) :][: len(after)]
            return "crop"
        assert sorted(after) == before
        moved = [place for place in range(n) if before[place] != after[place]]
        if moved:
            assert moved[-1] - moved[0] < int(0.6 * n)
        return "reorder" if moved else "same"

    def test_each_view_is_a_crop_a_mask_or_a_reordering(self, inputs):
        before = histories_of(inputs)
        kinds: dict[int, list[str]] = {user: [] for user in before}
        for view in self.draws(inputs):
            after = histories_of(view)
            for user, history in before.items():
                if history:
                    kinds[user].append(self.kind(history, after[user]))
                else:
                    assert after[user] == []
        for user, history in before.items():
            if len(history) >= 7:
                share = [kinds[user].count(kind) / 40 for kind in ("crop", "mask", "reorder")]
                assert min(share) > 0.1
        # Users of one view are drawn on their own.
        assert len({tuple(kind) for kind in kinds.values() if len(kind) == 40}) > 5

    def test_positions_end_with_the_last_one(self, inputs):
        for view in itertools.islice(self.draws(inputs), 10):
            occupied = np.asarray(view.items) > 0
            for user, items in histories_of(view).items():
                cells = occupied & (np.asarray(view.segment) == user)
                n = len(items)
                assert np.asarray(view.position)[cells].tolist() == list(range(MOST - n, MOST))
                assert set(np.asarray(view.pads)[cells].tolist()) <= {MOST - n}

    def test_every_start_and_every_cell_has_its_chance(self, inputs):
        before = histories_of(inputs)
        crops = {4: 6, 8: 3}  # of 10 items and of 5: 5 starts and 3, 3 of the 10 masked
        starts: dict[int, set[int]] = {user: set() for user in crops}
        masked = np.zeros(10)
        for view in self.draws(inputs, count=150):
            after = histories_of(view)
            masked += np.array(after[4] if MASKED in after[4] else [0] * 10) == MASKED
            for user, size in crops.items():
                if MASKED not in after[user] and len(after[user]) == size:
                    starts[user].add(before[user].index(after[user][0]))
        assert starts == {4: set(range(5)), 8: set(range(3))}
        assert masked.min() > 3

    def test_the_two_views_of_a_step_are_drawn_apart(self, config, inputs):
        settings = config(encoder__name="cl4srec", encoder__max_length=MOST)
        model, initialise = stage.make_model(settings, (), 200)
        views = jax.jit(model.encoder(initialise()).views)(inputs, jax.random.key(0))
        one, other = map(histories_of, views)
        long = [user for user, history in histories_of(inputs).items() if len(history) >= 7]
        assert sum(one[user] != other[user] for user in long) > len(long) / 2

    def test_rates_of_nothing_and_of_all(self, inputs):
        before = histories_of(inputs)
        for view in self.draws(inputs, (1.0, 0.0, 0.0), 5):
            assert histories_of(view) == before


class TestContrastiveLoss:
    def test_against_the_definition(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(2, 5, 4)).astype(np.float32)
        present = np.array([True, True, False, True, True])
        users = np.array([7, 3, 9, 9, 3])  # one of them twice, beside one who is not there
        owner = np.tile(users[present], 2)
        views = np.concatenate([first[present], second[present]]).astype(np.float64)
        terms = []
        for a in range(8):
            pair = (a + 4) % 8
            held = [b for b in range(8) if b == pair or owner[b] != owner[a]]
            products = {b: views[a] @ views[b] / 0.7 for b in held}
            total = np.log(sum(np.exp(value) for value in products.values()))
            terms.append(total - products[pair])
        found = contrastive_loss(*map(jnp.asarray, (first, second, present, users)), 0.7)
        np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)

    def test_a_user_who_is_drawn_twice_is_no_stranger(self):
        """Views that are alike, and at right angles to all others', leave next to no loss."""
        users = jnp.array([0, 1, 0])
        views = 50.0 * jnp.eye(3)[users]
        assert contrastive_loss(views, views, jnp.ones(3, bool), users, 1.0) < 1e-6

    def test_nobody(self):
        zeros = jnp.zeros((3, 2))
        assert contrastive_loss(zeros, zeros, jnp.zeros(3, bool), jnp.arange(3), 1.0) == 0

    def test_last_states(self, inputs):
        flat = Rows(*(part.reshape(-1) for part in inputs))
        states = jnp.arange(len(flat.items), dtype=jnp.float32)[:, None]
        found, present = last_states(states, flat, len(LENGTHS), MOST)
        assert present.tolist() == [n > 1 for n in LENGTHS]
        items = np.asarray(flat.items)[found[:, 0].astype(int)]
        for user, history in histories_of(inputs).items():
            assert not history or items[user] == history[-1]


class TestStep:
    def loss(self, config, histories, key, **fields):
        settings = config(encoder__name="cl4srec", encoder__max_length=MOST, **fields)
        model, initialise = stage.make_model(settings, ("dpa",), 200)
        offsets = np.cumsum([0, *LENGTHS])
        items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
        batch = histories(offsets, items, np.arange(len(LENGTHS)), MOST).batch()
        data = TrainingData(
            jnp.asarray(offsets, jnp.int32),
            jnp.asarray(items),
            stage.complement_table(offsets, items, 200),
            jnp.zeros(1),
            jnp.zeros((1, 1), jnp.int32),
            jnp.ones((len(LENGTHS), 8), jnp.int32),
        )
        return jax.jit(jax.value_and_grad(training_loss), static_argnums=1)(
            initialise(), model, data, batch, key
        )

    def test_what_it_adds(self, config, histories):
        key = jax.random.key(0)
        without, plain = self.loss(config, histories, key, encoder__contrast_weight=0.0)
        losses = [
            self.loss(config, histories, key, encoder__contrast_weight=weight)
            for weight in (0.1, 0.2)
        ]
        added = [float(loss - without) for loss, _ in losses]
        assert added[0] > 0.05
        assert added[1] == pytest.approx(2 * added[0], rel=1e-4)
        # The masked item has a row of its own in the table, which only this loss trains.
        assert plain["item_embedding"].shape == (202, 8)
        assert (plain["item_embedding"][201] == 0).all()
        assert (losses[0][1]["item_embedding"][201] != 0).any()

    def test_it_is_of_the_configs_temperature_and_weight(self, config, inputs):
        fields = {"encoder__contrast_temperature": 0.5, "encoder__contrast_weight": 0.3}
        settings = config(encoder__name="cl4srec", encoder__max_length=MOST, **fields)
        model, initialise = stage.make_model(settings, (), 200)
        flat = Rows(*(part.reshape(-1) for part in inputs))
        first, second = jax.random.normal(jax.random.key(0), (2, len(flat.items), 8))
        users = jnp.arange(len(LENGTHS), dtype=jnp.int32)
        found = model.encoder(initialise()).own_loss([first, second], [flat, flat], users)
        (one, present), (other, _) = (
            last_states(states, flat, len(users), MOST) for states in (first, second)
        )
        expected = 0.3 * contrastive_loss(one, other, present, users, 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @pytest.mark.loose_jax("dtypes")  # optax's Adam
    @pytest.mark.parametrize("above", [10**6, 1], ids=["whole table", "by rows"])
    def test_it_trains_and_ranks(self, config, world, above):
        everybody = np.ones(world.split.train.num_users, bool)
        settings = config(
            encoder__name="cl4srec",
            encoder__batch_size=16,
            encoder__learning_rate=0.02,
            encoder__blocks=1,
            encoder__row_adam_above=above,
            dpa__coarse=8,
            dpa__fine=3,
        )
        task, scorers = stage.build(
            settings,
            "hbr+nns+dpa",
            world.split,
            world.preferences,
            drawn=world.split.train.lengths >= 2,
            ranked=everybody,
            protocol=STRICT,
            candidates=world.candidates,
            validation=world.validation,
            name="cl4srec",
        )
        assert stage.title_of(settings.encoder, "base") == "CL4SRec"
        state, losses = task.initial(), []
        for epoch in range(1, 7):
            state, values = task.run_epoch(state, epoch, lambda steps: None)
            losses.append(values["loss"])
        assert np.mean(losses[-2:]) < 0.95 * losses[0]
        for kind in ("sampled", "full"):
            ranks = getattr(scorers["test"], kind)(task.parameters(state))
            assert len(ranks.ranks) == everybody.size
            assert ranks.ranks.max() < 200
