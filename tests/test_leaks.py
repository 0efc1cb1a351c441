"""What training can know of the held-out items: nothing under `strict`, and what is documented
under `reference` (docs/design.md, "Two protocols").

A log and its twin, in which the validation and test items are dealt to other users, go through the
stages up to what they train on. Whatever differs between the two has seen a held-out item.
"""

import dataclasses
import functools
import io
from pathlib import Path

import jax
import numpy as np
import pytest

from pdrec_jax import given as given_module
from pdrec_jax import other_runs, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.interactions import TARGET
from pdrec_jax.data.simulator import simulate
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.settings import default_config, put, seeded

SMALL = {
    "simulation.num_users": 90,
    "simulation.num_items": 250,
    "simulation.num_source_items": 80,
    "simulation.mean_length": 9.0,
    "evaluation.negatives": 20,
    "diffusion.hidden": (8,),
    "diffusion.steps": 2,
    "diffusion.embedding_size": 4,
    "diffusion.block": 64,
    "encoder.width": 4,
    "encoder.max_length": 12,
    "encoder.batch_size": 16,
    "dpa.coarse": 9,
    "nns.kept": 24,
    "nns.refresh_epochs": 2,
}
EVERYTHING = "hbr+nns+dpa"


def dealt_anew(log, which: tuple[int, ...]):
    """The log with the items of some of each user's last target events dealt to other users."""
    target = log.domains == TARGET
    owners = np.repeat(np.arange(log.num_users), log.lengths)
    items, rng = np.array(log.items), np.random.default_rng(0)
    for place in which:
        events = np.array(
            [
                own[place]
                for user in range(log.num_users)
                if len(own := np.flatnonzero(target & (owners == user))) >= 3
            ]
        )
        items[events] = items[rng.permutation(events)]
    return dataclasses.replace(log, items=items)


@dataclasses.dataclass(frozen=True)
class Seen:
    """All that the stages of one run train on, as arrays by name."""

    diffusion: dict[str, np.ndarray]
    preferences: dict[str, np.ndarray]
    encoder: dict[str, np.ndarray]
    chosen_by: dict[str, np.ndarray]
    split: object


def named(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def what_training_sees(config, log, folder: Path) -> Seen:
    with pytest.MonkeyPatch.context() as patch:
        made = {"source": "made", "files": []}
        patch.setattr(given_module.sources, "load", lambda *_: (log, made))
        given, _ = given_module.prepare(config, None)
    task, _ = diffusion_stage.build(
        seeded(config, "diffusion"),
        given.split,
        given.users.diffusion,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
    )
    params = task.initial()["params"]
    # As if it had been trained: the parameters are the same, if what they are trained on is.
    Store(folder / "diffusion").save("best", 1, params, {})
    phases.preferences_phase(given, folder, MetricLog(None, stream=io.StringIO(), progress=False))
    preferences = other_runs.read_preferences(given, folder)
    encoder, _ = encoder_stage.build(
        config,
        EVERYTHING,
        given.split,
        preferences,
        drawn=given.users.preferences,
        ranked=given.users.encoder,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
        name="x",
    )
    return Seen(
        {
            **{f.name: np.asarray(getattr(task.vectors, f.name))
               for f in dataclasses.fields(task.vectors)},
            **named(params),
            "users": task.users,
            "steps": np.array(task.steps),
        },
        {f.name: getattr(preferences, f.name) for f in dataclasses.fields(preferences)},
        {
            **named(dataclasses.asdict(encoder.data)),
            **named(encoder.layout(1)),
            "later pools": np.asarray(encoder.data_of(3).pools),
            **named(encoder.initial()["params"]),
            "users": encoder.users,
            "steps": np.array(encoder.steps),
        },
        {
            "diffusion": task.scorer.candidates[:, 0],
            "encoder": encoder.scorer.candidates[:, 0],
            "negatives": encoder.scorer.candidates[:, 1:],
            "input": encoder.scorer.items,
        },
        given.split,
    )  # fmt: skip


def differing(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not np.array_equal(first[name], second[name])}


@pytest.fixture(scope="module", params=[False, True], ids=["one domain", "both domains"])
def see(tmp_path_factory, request):
    """`see(protocol, -1)` is what is seen of the log whose last items were dealt anew."""
    config = default_config()
    for path, value in SMALL.items():
        put(config, path, value)
    config.data.mixed = request.param
    log = simulate(90, 250, seed=3, mean_length=9.0, source_items=80).log

    @functools.cache
    def see(protocol: str, *which: int) -> Seen:
        config.protocol = protocol
        folder = tmp_path_factory.mktemp("leaks")
        before = jax.config.values["jax_disable_most_optimizations"]
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            return what_training_sees(config, dealt_anew(log, which) if which else log, folder)
        finally:
            jax.config.update("jax_disable_most_optimizations", before)

    return see


@pytest.fixture
def plain(see, request) -> Seen:
    return see(request.param)


@pytest.mark.parametrize("plain", ["strict"], indirect=True)
def test_strict_trains_on_nothing_that_is_held_out(see, plain):
    both = see("strict", -1, -2)
    assert (plain.split.test_items != both.split.test_items).any()
    assert (plain.split.valid_items != both.split.valid_items).any()
    for part in ("diffusion", "preferences", "encoder"):
        assert differing(getattr(plain, part), getattr(both, part)) == set()
    # The validation item chooses the epoch, and is none of its own negatives.
    chosen = {"diffusion", "encoder", "negatives"}
    assert differing(plain.chosen_by, both.chosen_by) == chosen


@pytest.mark.parametrize("plain", ["strict"], indirect=True)
def test_strict_chooses_by_nothing_of_the_test(see, plain):
    test_alone = see("strict", -1)
    for part in ("diffusion", "preferences", "encoder", "chosen_by"):
        assert differing(getattr(plain, part), getattr(test_alone, part)) == set()


@pytest.mark.parametrize("which", [(-1,), (-2,)])
@pytest.mark.parametrize("plain", ["reference"], indirect=True)
def test_reference_leaks_where_it_is_documented_to(see, plain, which):
    other = see("reference", *which)
    # Neither the diffusion model nor DPA's candidates nor HBR's scores know a held-out item.
    assert differing(plain.diffusion, other.diffusion) == set()
    # The pool of negatives leaves the held-out items out.
    assert differing(plain.preferences, other.preferences) == {"negatives", "pools"}
    assert differing(plain.encoder, other.encoder) == {"['pools']", "later pools"}
    # The test item chooses the epoch, with the validation item in the input, and so none of the
    # negatives.
    chosen = {"diffusion", "encoder"} if which == (-1,) else {"input", "negatives"}
    assert differing(plain.chosen_by, other.chosen_by) == chosen


def test_a_leak_would_be_seen(see):
    # An earlier event is part of the training: dealing it anew shows in everything.
    plain, other = see("strict"), see("strict", -3)
    assert "items" in {name.strip("[]'") for name in differing(plain.encoder, other.encoder)}
    assert differing(plain.preferences, other.preferences) >= {"observed"}
    assert differing(plain.diffusion, other.diffusion)
