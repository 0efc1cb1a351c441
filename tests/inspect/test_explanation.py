"""What is said of a user against what the run has kept, and against the formulas by hand."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.inspect.explain import explain
from pdrec_jax.inspect.explanation import TEST, TRAIN, VALIDATION, Explanation
from pdrec_jax.inspect.page import as_page
from pdrec_jax.inspect.text import as_text
from pdrec_jax.inspect.trained import TrainedRun, find_user, maker_of, open_run, scores


@pytest.fixture(scope="module")
def index(run: TrainedRun, told: Explanation) -> int:
    return find_user(run, told.user).index


def test_ranks_are_those_that_the_run_kept(run) -> None:
    split = run.given.split
    for index in np.argsort(split.train.lengths, kind="stable")[[3, -1]]:
        views = explain(run, str(split.train.user_ids[index]), top=1).views
        assert [view.name for view in views] == ["TI-DiffRec", "SASRec", "SASRec+HBR+NNS+DPA"]
        for model, view in zip(run.models, views, strict=True):
            kept = run.place.phases.arrays(model.key)
            assert np.isfinite(kept["full_rank"][index])
            assert view.test_rank == 1 + kept["full_rank"][index]
            assert view.sampled_rank == 1 + kept["sampled_rank"][index]


def test_scores_are_those_that_the_preferences_kept(run, index) -> None:
    train, kept = run.given.split.train, run.preferences.observed
    there, model = maker_of(run)
    found = scores(run, there, model, find_user(run, str(train.user_ids[index])))[0]
    own = slice(train.offsets[index], train.offsets[index + 1])
    # Another batch size adds in another order.
    np.testing.assert_allclose(found[train.items[own]], kept[own], rtol=2e-4, atol=1e-6)


def test_history_is_the_log_in_order(run, told, index) -> None:
    split = run.given.split
    own = slice(split.train.offsets[index], split.train.offsets[index + 1])
    names = split.train.item_ids
    items = [*split.train.items[own], split.valid_items[index], split.test_items[index]]
    assert [event.item for event in told.events] == [names[item] for item in items]
    assert [event.part for event in told.events] == [TRAIN] * (len(items) - 2) + [VALIDATION, TEST]
    times = [event.time for event in told.events]
    assert times == sorted(times)
    assert times[-1] == split.test_times[index]


def test_interval_weights_are_equation_1(told) -> None:
    trained = [event for event in told.events if event.part == TRAIN]
    first, last = trained[0].time, trained[-1].time
    later: set[str] = set()
    for event in reversed(trained):
        share = (event.time - first) / (last - first)
        expected = None if event.item in later else pytest.approx(0.5 + 0.5 * share, rel=1e-6)
        assert event.interval == expected
        later.add(event.item)


def test_hbr_weights_are_equation_2(run, told) -> None:
    hbr, most = run.given.config.hbr, run.given.config.encoder.max_length
    trained = [event for event in told.events if event.part == TRAIN]
    targets = trained[1:][-most:]
    values = np.array([event.score for event in targets])
    share = (values - values.min()) / (values.max() - values.min())
    share /= share.mean()
    from_below = values.argsort(kind="stable").argsort(kind="stable") + 1
    mixed = (1 - hbr.rank_weight) * share + hbr.rank_weight * from_below / len(values)
    expected = np.clip(mixed, 0, hbr.clip) * hbr.scale
    assert [event.hbr for event in targets] == pytest.approx(list(expected), rel=1e-3, abs=1e-3)
    assert all(event.hbr is None for event in told.events if event not in targets)


def test_candidates_are_the_highest_unseen(run, told, index) -> None:
    train = run.given.split.train
    names = [candidate.item for candidate in told.candidates]
    kept = train.item_ids[run.preferences.candidates[index]]
    assert names == list(kept)
    assert set(names).isdisjoint(event.item for event in told.events if event.part == TRAIN)
    found = [candidate.score for candidate in told.candidates]
    assert found == sorted(found, reverse=True)
    assert list(told.curve.candidates) == list(range(1, 11))
    assert told.curve.values[:10] == pytest.approx(found)


def test_picks_are_what_the_plugged_encoder_scores_highest(run, told, index) -> None:
    model = run.models[-1]
    after, _ = scores(run, run.place, model, find_user(run, told.user))
    items = run.preferences.candidates[index]
    best = set(sorted(items, key=lambda item: -after[item])[:3])
    picked = {
        item for item, c in zip(items, told.candidates, strict=True) if c.picked_by == (model.name,)
    }
    assert picked == best
    assert sum(bool(candidate.picked_by) for candidate in told.candidates) == 3


def test_nothing_is_picked_where_positives_are_drawn(run, told) -> None:
    config = run.given.config.copy_and_resolve_references()
    config.dpa.drawn = 2
    other = dataclasses.replace(run, given=dataclasses.replace(run.given, config=config))
    found = explain(other, told.user)
    assert (told.fine, told.drawn) == (3, 0)
    assert (found.fine, found.drawn) == (0, 2)
    assert [c.item for c in found.candidates] == [c.item for c in told.candidates]
    assert not any(candidate.picked_by for candidate in found.candidates)
    assert "candidates, of which 2 drawn at every position" in as_text(found)
    assert "each position draws 2 of them" in as_page(found)


def test_negatives_come_from_the_pool_of_equation_3(run, told, index) -> None:
    train, found = run.given.split.train, told.negatives
    own = train.items[train.offsets[index] : train.offsets[index + 1]]
    left = train.num_items - len(set(own))
    assert found.ranked == left
    assert found.pool == (left // 2 + 1, left, left - left // 2)
    assert len(found.items) == 16
    assert (np.diff(found.ranks) > 0).all()
    assert found.pool[0] <= found.ranks[0]
    assert found.ranks[-1] <= found.pool[1]
    kept = {str(train.item_ids[item]) for item in run.preferences.negatives[index]}
    assert set(found.items) == kept


def test_an_item_that_is_kept_twice_is_shown_once(run, told, index) -> None:
    """As where the pool is smaller than what is kept of it."""
    negatives = run.preferences.negatives.copy()
    negatives[index, 8:] = negatives[index, :8]
    preferences = dataclasses.replace(run.preferences, negatives=negatives)
    found = explain(dataclasses.replace(run, preferences=preferences), told.user)
    assert len(found.negatives.items) == len(set(found.negatives.items)) == 8
    assert len(found.negatives.ranks) == 8
    assert "8 different negatives" in as_text(found)


def test_nothing_seen_is_recommended(told) -> None:
    seen = {event.item for event in told.events if event.part != TEST}
    own = told.events[-1].item
    for view in told.views:
        assert len(view.top) == 10
        assert seen.isdisjoint({item.item for item in view.top})
        found = [item.score for item in view.top]
        assert found == sorted(found, reverse=True)
        assert own in seen or (view.test_rank <= 10) == any(i.part == TEST for i in view.top)


def test_the_first_line_names_the_source(told) -> None:
    assert told.title == "real data | nasty | protocol strict | seed 0"
    assert told.source.startswith("Real data: log.csv (sha256 ")


class TestWhatCannotBeOpened:
    def test_an_unknown_user(self, run) -> None:
        with pytest.raises(UserError, match=r"^--user: .* has no user 'nobody'; its 40 users are"):
            find_user(run, "nobody")

    def test_no_run(self, tmp_path) -> None:
        with pytest.raises(UserError, match=r"config\.json"):
            open_run(tmp_path)

    def test_another_log(self, workdir, tmp_path, config) -> None:
        log = config.parent / "log.csv"
        before = log.read_bytes()
        try:
            log.write_bytes(before + b"user 1,item 3,1700000000\n")
            with pytest.raises(UserError, match="another content, by its checksum"):
                open_run(workdir)
        finally:
            log.write_bytes(before)

    def test_nothing_is_trained(self, workdir, tmp_path) -> None:
        for name in ("config.json", "data.json"):
            (tmp_path / name).write_bytes((workdir / name).read_bytes())
        with pytest.raises(UserError, match="no trained model is in it yet"):
            open_run(tmp_path)

    @pytest.mark.parametrize("key", ["preferences", "sasrec"])
    def test_a_damaged_record(self, workdir, tmp_path, key) -> None:
        copied = Path(shutil.copytree(workdir, tmp_path / "run"))
        record = copied / "phases" / f"{key}.json"
        record.write_bytes(record.read_bytes()[:-1])
        with pytest.raises(UserError, match=rf"phases/{key}\.json: .*the run does {key} anew"):
            open_run(copied)

    @pytest.mark.parametrize("content", ["", "[]", '{"seed": "one"}', '{"unknown": 1}', "\x00"])
    def test_a_broken_config(self, workdir, tmp_path, content) -> None:
        (tmp_path / "data.json").write_bytes((workdir / "data.json").read_bytes())
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json"):
            open_run(tmp_path)

    def test_several_seeds(self, workdir, tmp_path) -> None:
        text = (workdir / "config.json").read_text().replace('"seeds": 1', '"seeds": 2')
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "data.json").write_bytes((workdir / "data.json").read_bytes())
        with pytest.raises(UserError, match="seed-0"):
            open_run(tmp_path)


@pytest.mark.slow
class TestOtherRuns:
    def test_of_borrowed_preferences(self, train, workdir, told) -> None:
        flags = ["--config.stage=encoder", f"--config.preferences_from={workdir}"]
        other = explain(open_run(train("borrowed", *flags)), told.user)
        assert [view.name for view in other.views] == ["SASRec", "SASRec+HBR+NNS+DPA"]
        assert other.diffusion == "TI-DiffRec"
        assert other.negatives.pool == told.negatives.pool
        assert other.events == told.events

    def test_by_sasrec(self, train, told) -> None:
        other = explain(open_run(train("sasrec", "--config.preferences_by=sasrec")), told.user)
        assert [view.name for view in other.views] == ["SASRec", "SASRec+HBR+NNS+DPA"]
        assert other.diffusion == "SASRec"
        assert all(event.interval is None for event in other.events)
        assert list(other.curve.candidates) == list(range(1, 11))

    def test_under_reference(self, train) -> None:
        run = open_run(train("reference", "--config.protocol=reference", "--config.diffusion.both"))
        names = run.given.split.train.user_ids
        for index in (4, len(names) - 1):
            other = explain(run, str(names[index]))
            assert len(other.views) == 4
            for model, view in zip(run.models, other.views, strict=True):
                kept = run.place.phases.arrays(model.key)["full_rank"][index]
                assert np.isnan(kept) or view.test_rank == 1 + kept
            first, last = other.negatives.pool[:2]
            assert first <= other.negatives.ranks.min()
            assert other.negatives.ranks.max() <= last

    def test_without_plugins(self, train) -> None:
        flags = ["--config.stage=encoder", "--config.encoder.variants=base"]
        run = open_run(train("bare", *flags))
        other = explain(run, str(run.given.split.train.user_ids[3]))
        assert other.candidates == ()
        assert other.negatives is None
        assert "the run has computed none" in other.notes[0]
        assert [view.name for view in other.views] == ["SASRec"]
