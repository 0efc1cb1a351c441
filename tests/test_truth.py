"""The plugins do what they claim, held against the known truth of a simulated log.

Two models are trained as a run trains them, small and quickly, and what they say of items and
clicks is compared with what the simulator knows. "Truly liked" are the 5 % of the catalogue with
the highest true affinity; an affinity's percentile is the share of the catalogue below it.

As on Toy, M is a small share of the catalogue: 10 of 1,500 items here is still five times the
paper's 50 of 37,868. A user's two interests hold 60 items, so 50 candidates could not be likely
ones for anybody whose interests are known from a dozen clicks.
"""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax import training
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.batches import pack
from pdrec_jax.data.simulator import Simulation, simulate
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.model import Batch, final_states, score_items
from pdrec_jax.evaluation.metrics import SELECTION
from pdrec_jax.evaluation.protocol import STRICT, Protocol, draw_candidates, get_protocol, user_sets
from pdrec_jax.evaluation.ranking import Ranks, count_candidates
from pdrec_jax.given import pool_rules
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.settings import default_config, seeded

USERS, ITEMS = 1500, 1500
LIKED = 0.05
PROTOCOLS = ("strict", "reference")


def settings() -> ConfigDict:
    """The defaults, those of the plugins included, but for the models' sizes and M and N."""
    config = default_config()
    diffusion, encoder = config.diffusion, config.encoder
    diffusion.hidden, diffusion.learning_rate = (128,), 3e-3
    diffusion.epochs, diffusion.evaluate_every, diffusion.block = 20, 5, 512
    encoder.width, encoder.blocks, encoder.learning_rate = 32, 1, 0.01
    encoder.epochs, encoder.first_evaluation, encoder.evaluate_every = 15, 5, 5
    encoder.max_length, encoder.block = 50, 512
    config.dpa.coarse, config.dpa.fine = 10, 2
    return config


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A simulated log, what is true of it, and what the trained models make of it.

    Attributes:
        config: of both stages.
        simulation: the log and its truth.
        split: of the log.
        percentile: [U, I+1], share of the catalogue whose true affinity is lower; ties half.
        preferences: of the diffusion model, by the name of the protocol whose pools they are.
        picks: [U', N] DPA's fine picks by the encoder trained under `strict`.
        ndcg: test NDCG@10 on sampled candidates, by model; `popularity` ranks by training counts.
    """

    config: ConfigDict
    simulation: Simulation
    split: Split
    percentile: np.ndarray
    preferences: dict[str, Preferences]
    picks: np.ndarray
    ndcg: dict[str, float]

    def users(self, protocol: str) -> np.ndarray:
        """[U'] those who have preferences."""
        return np.flatnonzero(self.preferences[protocol].users)

    def percentile_of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """[U', n] true percentile of items [U', n] for the users [U'] of its rows."""
        return self.percentile[users[:, None], items]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    config, place = settings(), tmp_path_factory.mktemp("world")
    simulation = simulate(USERS, ITEMS, seed=0)
    split = leave_one_out(simulation.log)
    assert split.dropped_users == 0
    taking_part = user_sets(STRICT, split)
    held = {
        "candidates": draw_candidates(STRICT, split, seed=0, heldout="test"),
        "validation": draw_candidates(STRICT, split, seed=0, heldout="valid"),
    }
    with MetricLog(None, progress=False) as log:
        section, store = seeded(config, "diffusion"), Store(place / "diffusion")
        task, scorers = diffusion_stage.build(
            section, split, taking_part.diffusion, protocol=STRICT, **held
        )
        loop = diffusion_stage.loop_settings(section, config.save_seconds)
        fitted = training.fit(task, loop, store, log)
        ndcg = {"diffusion": scorers["test"].sampled(fitted.params).metrics()[SELECTION]}

        def infer(protocol: Protocol) -> Preferences:
            users, rules = user_sets(protocol, split).preferences, pool_rules(config, protocol)
            heldout = protocol.nns_excludes_heldout
            return diffusion_stage.infer_preferences(
                section, split, users, rules, store, log, exclude_heldout=heldout
            )

        preferences = {name: infer(get_protocol(name)) for name in PROTOCOLS}

        task, scorers = encoder_stage.build(
            config,
            "hbr+nns+dpa",
            split,
            preferences["strict"],
            drawn=taking_part.preferences,
            ranked=taking_part.encoder,
            protocol=STRICT,
            name="encoder",
            **held,
        )
        loop = encoder_stage.loop_settings(config.encoder, config.save_seconds)
        fitted = training.fit(task, loop, Store(place / "encoder"), log)
        ndcg["encoder"] = scorers["test"].sampled(fitted.params).metrics()[SELECTION]
        picks = fine_picks(config, task.model, fitted.params, split, preferences["strict"])
    ranked = held["candidates"][taking_part.encoder]
    ndcg["popularity"] = popularity_ndcg(split, ranked)
    affinity = simulation.affinity(np.arange(USERS))
    return World(config, simulation, split, percentiles(affinity), preferences, picks, ndcg)


def percentiles(affinity: np.ndarray) -> np.ndarray:
    """Share of a row's items that are lower, ties half; column 0 is the padding's, 0."""
    out = np.zeros(affinity.shape)
    for row, values in zip(out, affinity[:, 1:], strict=True):
        ordered = np.sort(values)
        below, through = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        row[1:] = (below + through) / (2 * len(values))
    return out


def popularity_ndcg(split: Split, candidates: np.ndarray) -> float:
    counts = np.bincount(split.train.items, minlength=ITEMS + 1).astype(np.float32)
    above, ties = map(np.asarray, count_candidates(counts[candidates], candidates))
    negatives = np.full(len(candidates), candidates.shape[1] - 1)
    return Ranks(above, ties, negatives, half_ties=True).metrics()[SELECTION]


def fine_picks(config, model, params, split: Split, preferences: Preferences) -> np.ndarray:
    """[U', N] of the candidates, those that the encoder scores highest after the training part."""
    users = np.flatnonzero(preferences.users)
    cells = pack(split.train.offsets, users, model.max_length)
    batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
    offsets = split.train.offsets.astype(np.int32)
    states = final_states(params, model, offsets, split.train.items, batch)
    candidates = preferences.candidates[users]
    logits = np.asarray(score_items(params, model, states, candidates))
    best = np.argsort(-logits, axis=1)[:, : config.dpa.fine]
    return np.take_along_axis(candidates, best, axis=1)


def area_under_curve(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that a value of `high` exceeds one of `low`, ties half."""
    ordered = np.sort(low)
    below, through = (np.searchsorted(ordered, high, side=side) for side in ("left", "right"))
    return float(np.mean(below + through) / (2 * len(low)))


class TestModelsLearn:
    """What follows would say nothing about plugins if the models had learnt nothing."""

    def test_popularity_is_worth_something(self, world):
        assert 0.10 < world.ndcg["popularity"] < 0.20

    def test_diffusion(self, world):
        assert world.ndcg["diffusion"] > 0.36
        assert world.ndcg["diffusion"] > 2 * world.ndcg["popularity"]

    def test_encoder(self, world):
        assert world.ndcg["encoder"] > 0.25
        assert world.ndcg["encoder"] > 1.5 * world.ndcg["popularity"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestHistoricalBehaviourReweighting:
    @pytest.mark.loose_jax("dtypes")  # a count of behaviours divides a weight
    def test_accidental_clicks_weigh_less(self, world, protocol):
        train, owner = world.split.train, world.split.train.event_users
        weights = encoder_stage.hbr_weights(
            world.config.hbr,
            world.split,
            world.preferences[protocol],
            get_protocol(protocol).hbr_floor,
            world.config.encoder.max_length,
        )
        log, held_out = world.simulation.log, 2
        accidental = world.simulation.accidental[
            np.arange(log.num_events) < log.offsets[1:][log.event_users] - held_out
        ]
        from_end = train.offsets[1:][owner] - np.arange(train.num_events)
        later = np.arange(train.num_events) > train.offsets[owner]
        target = later & (from_end <= world.config.encoder.max_length)
        target &= world.preferences[protocol].users[owner]
        assert (weights[target] > 0).all()
        assert not weights[~target].any()
        deliberate = target & ~accidental
        area = area_under_curve(weights[deliberate], weights[target & accidental])
        assert area > 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestDiffusionPositiveAugmentation:
    def test_candidates_are_liked(self, world, protocol):
        users = world.users(protocol)
        candidates = world.preferences[protocol].candidates[users]
        assert world.percentile_of(users, candidates).mean() > 0.9

    def test_popular_items_would_not_do(self, world, protocol):
        users, train = world.users(protocol), world.split.train
        counts = np.tile(np.bincount(train.items, minlength=ITEMS + 1), (USERS, 1))
        if get_protocol(protocol).dpa_unobserved:
            counts[train.event_users, train.items] = 0
        popular = np.argsort(-counts[users], axis=1)[:, : world.config.dpa.coarse]
        assert world.percentile_of(users, popular).mean() < 0.9


class TestFinePicks:
    def test_are_liked(self, world):
        found = world.percentile_of(world.users("strict"), world.picks)
        assert found.mean() > 0.9

    def test_are_the_better_candidates(self, world):
        users = world.users("strict")
        candidates = world.preferences["strict"].candidates[users]
        found = world.percentile_of(users, world.picks).mean()
        assert found > world.percentile_of(users, candidates).mean() + 0.01


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestNoiseFreeNegatives:
    def test_fewer_are_liked(self, world, protocol):
        users, train = world.users(protocol), world.split.train
        liked = world.percentile > 1 - LIKED
        negatives = world.preferences[protocol].negatives[users]
        drawn = liked[users[:, None], negatives].mean()
        # Uniform negatives are drawn outside the training history: their expectation, exactly.
        outside = np.ones_like(liked)
        outside[:, 0] = False
        outside[train.event_users, train.items] = False
        uniform = ((liked & outside).sum(axis=1) / outside.sum(axis=1))[users].mean()
        assert uniform > 0.8 * LIKED
        assert drawn < 0.5 * uniform
