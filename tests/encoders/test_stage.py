"""The encoder stage: variants, HBR's weights by event, and what a config builds."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from pdrec_jax.data.batches import pack
from pdrec_jax.encoders import stage
from pdrec_jax.encoders.model import Batch
from pdrec_jax.encoders.stage import (
    build,
    hbr_weights,
    loop_settings,
    make_model,
    parse_variant,
    title_of,
    training_data,
)
from pdrec_jax.encoders.step_inputs import step_inputs
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import REFERENCE, STRICT
from pdrec_jax.plugins.hbr import behaviour_weights
from pdrec_jax.training import LoopSettings


@pytest.mark.parametrize(
    ("variant", "plugins"),
    [("base", ()), ("dpa", ("dpa",)), ("dpa+nns+hbr", ("hbr", "nns", "dpa"))],
)
def test_parse_variant(variant, plugins):
    assert parse_variant(variant) == plugins


@pytest.mark.parametrize("variant", ["", "HBR", "hbr+hbr", "base+hbr", "hbr+", "ndp"])
def test_a_bad_variant(variant):
    with pytest.raises(
        UserError, match=r"^config\.encoder\.variants: expected 'base' or some of hbr\+nns"
    ):
        parse_variant(variant)


def test_title(config):
    section = config().encoder
    assert title_of(section, "base") == "SASRec"
    assert title_of(section, "dpa+hbr") == "SASRec+HBR+DPA"


class TestMakeModel:
    def test_the_same_config_gives_an_equal_model(self, config):
        # Static under jit: an unequal one would compile again.
        first, again = (make_model(config(), ("hbr",), 20)[0] for _ in range(2))
        assert first == again
        assert hash(first) == hash(again)
        assert first != make_model(config(), (), 20)[0]
        assert first != make_model(config(encoder__blocks=3), ("hbr",), 20)[0]

    def test_plugins(self, config):
        settings = config(dpa__fine=4, dpa__weight=0.2)
        model, _ = make_model(settings, ("nns", "dpa"), 20)
        assert (model.hbr, model.nns, model.dpa_fine, model.dpa_weight) == (False, True, 4, 0.2)
        model, _ = make_model(settings, ("hbr",), 20)
        assert (model.hbr, model.nns, model.dpa_fine, model.dpa_weight) == (True, False, 0, 0.0)

    def test_positives_are_picked_or_drawn(self, config):
        settings = config(dpa__fine=4, dpa__drawn=2)
        for plugins, expected in ((("dpa",), (0, 2, True)), (("nns",), (0, 0, False))):
            model, _ = make_model(settings, plugins, 20)
            assert (model.dpa_fine, model.dpa_drawn, model.dpa) == expected
        assert make_model(config(dpa__fine=4), ("dpa",), 20)[0].dpa

    def test_positives_are_drawn_by_rank_where_they_are_drawn(self, config):
        for variant, drawn, expected in (("dpa", 1, True), ("dpa", 0, False), ("nns", 1, False)):
            settings = config(dpa__drawn=drawn, dpa__draw_by="rank")
            model, _ = make_model(settings, (variant,), 100)
            assert model.dpa_by_rank is expected

    def test_without_training_all_variants_are_one(self, config):
        settings = config(encoder__negatives=3, encoder__positive_weight=2.0, dpa__drawn=1)
        variants = (("hbr", "nns", "dpa"), ("dpa",), ())
        plain = [make_model(settings, plugins, 20)[0].without_training() for plugins in variants]
        assert plain[0] == plain[1] == plain[2] == make_model(config(), (), 20)[0]

    def test_initial_values_follow_the_seed(self, config):
        runs = [make_model(config(seed=seed, encoder__blocks=1), (), 20)[1]() for seed in (0, 0, 1)]
        jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
        assert (runs[0]["item_embedding"] != runs[2]["item_embedding"]).all()
        assert runs[0]["item_embedding"].shape == (21, 8)
        assert runs[0]["position_embedding"].shape == (12, 8)
        assert len(runs[0]["blocks"]) == 1


def weights_by_user(config, split, preferences, floor, longest) -> np.ndarray:
    """HBR's weights, one user after the other (PDRec, Eq. 2)."""
    out = np.zeros(split.train.num_events)
    for user in range(split.train.num_users):
        begin, end = split.train.offsets[user : user + 2]
        targets = np.arange(begin + 1, end)[-longest:]
        n = len(targets)
        if n == 0:
            continue
        scores = preferences.observed[targets].astype(np.float64)
        base = scores.min()
        if floor == "shifted" and n < longest:
            base = min(base, preferences.padding[user])
            base *= 0.5 if base > 0 else 1.5
        span = scores.max() - base
        share = (scores - base) / span if span > 0 else np.ones(n)
        share *= n / share.sum()
        rank = np.argsort(np.argsort(scores, kind="stable")) + 1
        mixed = share * (1 - config.rank_weight) + rank / n * config.rank_weight
        out[targets] = np.clip(mixed, 0, config.clip) * config.scale
    return out


@pytest.mark.parametrize(
    ("floor", "longest"), [("observed", 2), ("observed", 200), ("shifted", 5), ("shifted", 200)]
)
def test_hbr_weights_belong_to_their_events(monkeypatch, config, world, floor, longest):
    monkeypatch.setattr(stage, "_HBR_BLOCK", 32)
    section = config(hbr__rank_weight=0.3, hbr__clip=1.2, hbr__scale=4.0).hbr
    lengths = world.split.train.lengths
    assert (lengths == 1).any()
    assert (lengths > 6).any()
    found = hbr_weights(section, world.split, world.preferences, floor, longest)
    wanted = weights_by_user(section, world.split, world.preferences, floor, longest)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


class TestTrainingData:
    @pytest.mark.parametrize("plugin", ["hbr", "nns", "dpa"])
    def test_plugins_need_preferences(self, config, world, plugin):
        model, _ = make_model(config(), (plugin,), 200)
        with pytest.raises(UserError, match=r"^encoder: plugins need preferences"):
            training_data(config(), world.split, None, model, "observed")

    def test_the_source_is_input_alone_where_it_is_not_learnt(self, config, world):
        """The loss is then that of the target's positions among all, and so are HBR's weights."""
        split = dataclasses.replace(world.split, learns_source=False)
        num_items = split.train.num_items
        train = dataclasses.replace(
            split.train,
            domains=(split.train.items > num_items // 2).astype(np.int8),
            num_target_items=num_items // 2,
        )
        split = dataclasses.replace(split, train=train)
        model, initialise = make_model(config(), (), num_items)
        params = initialise()
        data = training_data(config(), split, None, model, "observed")
        users = np.flatnonzero(train.lengths > 2)[:4].astype(np.int32)
        cells = pack(train.offsets, users, model.max_length, layout=model.layout)
        batch = Batch(users, cells.event, cells.segment, cells.last)
        both, one = (
            step_inputs(params, made, data, batch, jax.random.key(0))
            for made in (model, dataclasses.replace(model, num_learnt=num_items // 2))
        )
        expected = both.valid & (both.ids["positive"] <= num_items // 2)
        np.testing.assert_array_equal(one.valid, expected)
        assert 0 < one.valid.sum() < both.valid.sum()
        assert one.ids["uniform"].max() <= num_items // 2
        for mine, theirs in zip(one.groups, both.groups, strict=True):
            jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        weights = hbr_weights(config().hbr, split, world.preferences, "observed", 50)
        assert not weights[train.items > num_items // 2].any()
        # As of the target's events alone but for the first of the history.
        user = int(users[0])
        events = np.arange(train.offsets[user] + 1, train.offsets[user + 1])
        events = events[train.items[events] <= num_items // 2]
        alone = np.asarray(
            behaviour_weights(
                world.preferences.observed[events][None],
                np.ones((1, len(events)), bool),
                rank_weight=config().hbr.rank_weight,
                clip=config().hbr.clip,
                scale=config().hbr.scale,
            )
        )
        np.testing.assert_allclose(weights[events], alone[0], rtol=1e-5)

    def test_more_events_than_32_bits_count(self, config):
        train = types.SimpleNamespace(mapped=False, num_events=2**31)
        model = types.SimpleNamespace(hbr=False, nns=0, dpa=False, mesh=None)
        with pytest.raises(UserError, match=r"2,147,483,648 events, .* with --mapped, or set"):
            training_data(config(), types.SimpleNamespace(train=train), None, model, "observed")

    def test_what_is_off_takes_no_room(self, config, world):
        model, _ = make_model(config(), ("nns",), 200)
        data = training_data(config(), world.split, world.preferences, model, "observed")
        np.testing.assert_array_equal(data.pools, world.preferences.negatives)
        assert data.candidates.size == data.weights.size == 1
        np.testing.assert_array_equal(data.items, world.split.train.items)
        np.testing.assert_array_equal(data.offsets, world.split.train.offsets)


class TestBuild:
    def options(self, world, protocol):
        return {
            "drawn": world.split.train.lengths >= 2,
            "ranked": np.arange(world.split.train.num_users) % 2 == 0,
            "protocol": protocol,
            "candidates": world.candidates,
            "validation": world.validation,
            "name": "x",
        }

    def test_strict_is_chosen_by_validation(self, config, world):
        task, scorers = build(config(), "base", world.split, None, **self.options(world, STRICT))
        train = world.split.train
        valid, test = scorers["validation"], scorers["test"]
        assert task.scorer is valid
        # The input ends before the item that is ranked.
        np.testing.assert_array_equal(valid.items, train.items)
        np.testing.assert_array_equal(valid.candidates[:, 0], world.split.valid_items)
        assert len(test.items) == train.num_events + train.num_users
        np.testing.assert_array_equal(test.candidates[:, 0], world.split.test_items)
        np.testing.assert_array_equal(test.items[test.offsets[1:] - 1], world.split.valid_items)
        assert test.users.tolist() == list(range(0, train.num_users, 2))
        assert task.users.tolist() == np.flatnonzero(train.lengths >= 2).tolist()
        assert test.half_ties

    def test_reference_is_chosen_by_the_test(self, config, world):
        task, scorers = build(config(), "base", world.split, None, **self.options(world, REFERENCE))
        assert task.scorer is scorers["test"]
        assert scorers["validation"] is None
        assert not scorers["test"].half_ties

    def test_items_of_the_target_alone_are_ranked(self, config, world):
        train = dataclasses.replace(
            world.split.train,
            domains=(world.split.train.items > 120).astype(np.int8),
            num_target_items=120,
        )
        split = dataclasses.replace(world.split, train=train, history=train)
        _, scorers = build(config(), "base", split, None, **self.options(world, STRICT))
        assert [scorers[name].num_items for name in ("validation", "test")] == [120, 120]


def test_when_it_stops(config):
    fields = {
        "epochs": 9,
        "patience": 3,
        "first_evaluation": 4,
        "min_epochs": 6,
        "evaluate_every": 2,
    }
    section = config(**{f"encoder__{name}": value for name, value in fields.items()}).encoder
    expected = LoopSettings(**fields, save_seconds=60.0, save_behind=True)
    assert loop_settings(section, 60.0, save_behind=True) == expected
