"""An encoder of the user's own: registered by name, trained and ranked like any other."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from pdrec_jax.data.batches import pack
from pdrec_jax.encoders import contract, registry, stage
from pdrec_jax.encoders.model import Batch
from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.encoders.step import training_loss
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import STRICT
from pdrec_jax.main import load_config
from pdrec_jax.overrides import validate

PAGE = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def example() -> str:
    """The config file in README, with an encoder of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return code


@pytest.fixture
def example_config(own_encoders, example, tmp_path) -> ConfigDict:
    path = tmp_path / "mean.py"
    path.write_text(example, encoding="utf-8")
    return load_config(str(path))


def test_the_example_is_short(example):
    assert len([line for line in example.splitlines() if line]) < 30


@pytest.mark.parametrize("title", ["SASRec", "GRU4Rec", "CL4SRec"])
def test_ours_are_there(title):
    assert registry.find(title.lower())[0] == title


def test_an_unknown_name(example_config):
    message = r"^config\.encoder\.name: one of .*, mean, sasrec is expected, or .*; got 'bert'$"
    with pytest.raises(UserError, match=message):
        registry.find("bert")


def test_something_else_is_refused(own_encoders, config):
    registry.register(
        "linear", "Linear", lambda config, num_items, *, rngs: nnx.Linear(2, 2, rngs=rngs)
    )
    with pytest.raises(UserError, match=r"^encoder Linear: a .*\.Encoder is expected, got Linear$"):
        stage.make_model(config(encoder__name="linear"), (), 20)


@pytest.mark.parametrize(
    ("name", "title", "message"),
    [
        ("data", "Data", "the name 'data' is taken"),
        ("preferences", "Mean", "the name 'preferences' is taken"),
        ("diffusionrec", "Mean", "the name 'diffusionrec' is taken"),
        ("sasrec", "Mine", "the name 'sasrec' is taken"),
        ("my+net", "Mine", "a name of letters, digits"),
        ("my/net", "Mine", "a name of letters, digits"),
        ("", "Mine", "a name of letters, digits"),
        ("mine", "SASRec", "the title 'SASRec' is that of 'sasrec'"),
    ],
)
def test_names_that_a_run_takes_for_something_else(own_encoders, name, title, message):
    before = dict(registry._ENCODERS)
    with pytest.raises(UserError, match=message):
        registry.register(name, title, SASRec)
    assert before == registry._ENCODERS


def test_a_config_file_may_be_read_again(own_encoders, example_config, tmp_path):
    assert load_config(str(tmp_path / "mean.py")).encoder.name == "mean"


class OwnSASRec(SASRec):
    """What this file derives from ours counts as a user's own."""


class ShortTable(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items - 1, rngs=rngs)


class NoTable(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        del self.item_embedding


class EmbedTable(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.item_embedding = nnx.Embed(num_items + 1, config.width, rngs=rngs)


class OtherTable(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.inner = SASRec(config, 5, rngs=rngs)


class Narrow(OwnSASRec):
    def __call__(self, vectors, rows, key=None):
        return super().__call__(vectors, rows, key)[..., :1]


class Running(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.norm = nnx.BatchNorm(config.width, rngs=rngs)


class Dropping(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))


class HoldsConfig(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.settings = config


class HoldsConstant(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.distances = jnp.arange(config.max_length)


class InnerDict(OwnSASRec):
    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.inner = nnx.Linear(2, 2, rngs=rngs)
        self.inner.options = {"scale": 2.0}


def with_param(value):
    class Odd(OwnSASRec):
        def __init__(self, config, num_items, *, rngs):
            super().__init__(config, num_items, rngs=rngs)
            self.odd = nnx.Param(value())

    return Odd


class Failing(OwnSASRec):
    def __call__(self, vectors, rows, key=None):
        raise RuntimeError("no such\nlayer")


class NarrowAtEnds(OwnSASRec):
    def __call__(self, vectors, rows, key=None, ends=None):
        states = super().__call__(vectors, rows, key)
        return states if ends is None else states[:1]


class OnlyTrained(OwnSASRec):
    def __call__(self, vectors, rows, key=None):
        return super().__call__(vectors, rows, key) * jax.random.uniform(key)


class OneView(OwnSASRec):
    def views(self, rows, key):
        return rows.items


class FlatViews(OwnSASRec):
    def views(self, rows, key):
        return (type(rows)(*(cells[0] for cells in rows)),)


class SomeViews(OwnSASRec):
    def views(self, rows, key):
        return (rows,) * (rows.items.shape[1] == 64)


class LossOfCells(OwnSASRec):
    def views(self, rows, key):
        return (rows,)

    def own_loss(self, states, views, users):
        return jnp.mean(states[0], axis=-1)


class FailingLoss(OwnSASRec):
    def own_loss(self, states, views, users):
        return states[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneView, r"a tuple of layers.Rows \[R, L\] from views is expected, got "),
        (FlatViews, r"a tuple of layers.Rows \[R, L\] from views is expected, got \(Rows"),
        (LossOfCells, r"one number from own_loss, shape \(\), is expected, got \(\d+,\)"),
        (FailingLoss, r"test_registry.py: row \d+: IndexError: "),
        (
            ShortTable,
            r"item_embedding, an nnx.Param \[.* \(here of 21 rows\) .* got \(20, ",
        ),
        (NoTable, "item_embedding, .* got none"),
        (EmbedTable, "item_embedding, .* got dict"),
        (OtherTable, r"another name of what has no row .* got inner\.item_embedding"),
        (Narrow, r"a state as wide as item_embedding .* got \(2, 12, 1\)"),
        (NarrowAtEnds, r"a state as wide as item_embedding .* got \(1, 12, 8\)"),
        (Running, r"nothing but nnx.Param .* got other state in norm\.mean"),
        (Dropping, r"nothing but nnx.Param .* got other state in dropout\.rngs"),
        (HoldsConfig, r"nothing but numbers, text .* got another kind in settings$"),
        (HoldsConstant, r"nothing but numbers, text .* got another kind in distances$"),
        (InnerDict, r"nothing but numbers, text .* got another kind in options$"),
        (with_param(lambda: jnp.arange(3)), r"floating-point .* got int32 \(3,\) in odd$"),
        (with_param(lambda: jax.random.key(0)), r"floating-point .* got key<fry> \(\) in odd$"),
        (with_param(lambda: jnp.zeros((0, 2))), r"floating-point .* got float32 \(0, 2\) in odd$"),
        (OnlyTrained, r"test_registry.py: row \d+: "),
        (Failing, r"test_registry.py: row \d+: RuntimeError: no such$"),
    ],
)
def test_what_is_no_encoder_is_found_before_it_is_trained(own_encoders, config, kind, message):
    registry.register("own", "Own", kind)
    with pytest.raises(UserError, match=f"^encoder Own: .*{message}"):
        stage.make_model(config(encoder__name="own"), (), 20)


def test_views_of_rows_of_any_length(own_encoders, config):
    registry.register("own", "Own", SomeViews)
    with pytest.raises(UserError, match=r"number of views .* is expected, got 1, 0"):
        stage.make_model(config(encoder__name="own", encoder__max_length=200), (), 20)


def built(settings, variant, world):
    return stage.build(
        settings,
        variant,
        world.split,
        world.preferences,
        drawn=world.split.train.lengths >= 2,
        ranked=np.ones(world.split.train.num_users, bool),
        protocol=STRICT,
        candidates=world.candidates,
        validation=world.validation,
        name="own",
    )


class Tied(SASRec):
    """SASRec that adds the mean of all items to what it is handed."""

    def __call__(self, vectors, rows, key=None):
        mean = self.item_embedding.mean(axis=0)
        return super().__call__(vectors + mean[None, None], rows, key)


class TiedLoss(SASRec):
    def own_loss(self, states, views, users):
        return jnp.sum(self.item_embedding[1] ** 2)


@pytest.mark.parametrize("kind", [Tied, TiedLoss])
@pytest.mark.loose_jax("dtypes")  # optax's Adam
def test_a_table_that_is_read_by_itself_has_its_gradient(own_encoders, config, world, kind):
    registry.register("own", "Own", kind)
    found = []
    for above in (10_000, 1):
        settings = config(
            encoder__name="own",
            encoder__blocks=1,
            encoder__batch_size=16,
            encoder__row_adam_above=above,
        )
        task, _ = built(settings, "base", world)
        assert task.model.reads_table
        state, values = task.run_epoch(task.initial(), 1, lambda steps: None)
        found.append((values["loss"], np.asarray(task.parameters(state)["item_embedding"])))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "cl4srec"])
def test_ours_read_no_more_of_the_table_than_they_are_handed(config, name):
    made = registry.find(name)[1](config().encoder, 20, rngs=nnx.Rngs(params=0))
    graph, state = nnx.split(made)
    params = nnx.to_pure_dict(state)

    def encoder(params):
        return nnx.merge(graph, params)

    assert not contract.require_step(name, encoder, params, made.layout.row_lengths(12), 16)


class NearUsers(SASRec):
    """Looks at more users than two, which a batch has."""

    def views(self, rows, key):
        return [rows]

    def own_loss(self, states, views, users):
        near = jax.lax.top_k((users[:, None] == users[None, :]).astype(jnp.float32), 5)[0]
        return jnp.sum(near) + jnp.mean(states[0]) + users.reshape(4, -1).size


def test_a_batch_of_the_size_that_is_trained_is_traced(own_encoders, config):
    registry.register("own", "Own", NearUsers)
    model, _ = stage.make_model(config(encoder__name="own", encoder__batch_size=16), (), 20)
    assert not model.reads_table


class Adding(SASRec):
    """SASRec with a view of its own and a loss from it."""

    def views(self, rows, key):
        return (rows,)

    def own_loss(self, states, views, users):
        (state,), (view,) = states, views
        assert state.shape[0] == view.items.shape[0]
        kept = jnp.sum(view.items > 0) + len(users)
        return kept.astype(jnp.float32) + 0 * jnp.sum(state)


def test_a_loss_of_its_own(own_encoders, config, world):
    registry.register("adding", "Adding", Adding)
    losses = []
    for name in ("sasrec", "adding"):
        settings = config(encoder__name=name, encoder__blocks=1)
        model, initialise = stage.make_model(settings, (), 200)
        split = world.split
        data = stage.training_data(settings, split, None, model, "observed")
        users = np.flatnonzero(split.train.lengths >= 2)[:8]
        cells = pack(split.train.offsets, users, 12)
        batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
        loss = jax.jit(training_loss, static_argnums=1)
        losses.append(loss(initialise(), model, data, batch, jax.random.key(0)))
    paired = np.minimum(split.train.lengths[users] - 1, 12).sum()
    np.testing.assert_allclose(losses[1] - losses[0], paired + 8, rtol=1e-5)


@pytest.mark.loose_jax("dtypes")  # optax's Adam
def test_it_trains_with_all_plugins(example_config, config, world):
    validate(example_config)
    settings = config(
        encoder__name=example_config.encoder.name,
        encoder__batch_size=16,
        encoder__learning_rate=0.02,
        dpa__coarse=8,
        dpa__fine=3,
    )
    task, scorers = built(settings, "nns+hbr+dpa", world)
    assert stage.title_of(settings.encoder, "nns+hbr+dpa") == "Mean+HBR+NNS+DPA"
    state, losses = task.initial(), []
    assert sorted(state["params"]) == ["item_embedding", "kernel"]
    for epoch in range(1, 9):
        state, values = task.run_epoch(state, epoch, lambda steps: None)
        losses.append(values["loss"])
    # Draws differ from epoch to epoch, so the loss wobbles on its way down.
    assert np.mean(losses[-2:]) < 0.9 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert np.abs(state["params"]["kernel"] - np.eye(8)).max() > 0.01
    ranks = scorers["test"].sampled(state["params"])
    assert len(ranks.ranks) == world.split.train.num_users
    validation = scorers["validation"].sampled(state["params"]).metrics()
    assert task.evaluate(state["params"]) == validation["NDCG@10"] > 0
