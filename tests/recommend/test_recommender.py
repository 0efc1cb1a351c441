"""What is recommended, against scores of the whole catalogue that are sorted as a whole."""

import dataclasses
import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pdrec_jax
from pdrec_jax.data import sources
from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.catalogue import CATALOGUE, load_catalogue, save_catalogue
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError
from pdrec_jax.given import prepare
from pdrec_jax.recommend import recommender as module
from pdrec_jax.recommend.recommender import Recommender
from pdrec_jax.workdir import Workdir

VARIANTS = {"sasrec": "base", "sasrec+hbr+nns+dpa": "hbr+nns+dpa", "diffusion": "diffusion"}


def test_a_model_of_a_log_without_times_weighs_none(run: Path, tmp_path: Path) -> None:
    """Its weighting is still called ``time``, the default."""
    whole = Recommender.load(run, "diffusion")
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["time"] = ""
    path.write_text(json.dumps(config))
    timeless = Recommender.load(tmp_path / "run", "diffusion")
    history, times = [[1, 2, 3, 4, 5]], [[0, 1, 2, 3, 900_000_000]]
    (plain,), (timed,) = timeless.recommend(history), timeless.recommend(history, times=times)
    assert list(plain.scores) == list(timed.scores)
    (weighed,) = whole.recommend(history, times=times)
    assert list(weighed.scores) != list(timed.scores)


def simulated(run: Path) -> Interactions:
    return sources.load(Workdir.open(run).config, None)[0]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, run: Path, scores_of) -> tuple[Recommender, Interactions, np.ndarray]:
    """A recommender, the run's log, and scores of all items for its users."""
    log = simulated(run)
    key = request.param
    scores = scores_of(run, key, log)
    scores[:, 0] = -np.inf
    return Recommender.load(run, VARIANTS[key]), log, scores


def check(found: module.Recommendation, scores: np.ndarray, k: int) -> None:
    """The k best of scores that are -inf for what must not come; equal but for rounding."""
    items = np.array(found.items)
    assert len(set(found.items)) == k
    best = np.sort(scores)[::-1][:k]
    np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[items], best, rtol=1e-4, atol=1e-5)
    assert found.basis == "history"


class TestWhatIsRecommended:
    def test_users_of_the_log_by_all_that_they_did(self, model) -> None:
        recommender, log, scores = model
        found = recommender.recommend_users(log.user_ids.tolist(), k=5)
        for user, one in enumerate(found):
            own = scores[user].copy()
            own[log.items[log.offsets[user] : log.offsets[user + 1]]] = -np.inf
            check(one, own, 5)

    def test_histories_give_the_same_as_the_log(self, model) -> None:
        recommender, log, _ = model
        cut = list(zip(log.offsets[:-1], log.offsets[1:], strict=True))
        histories = [log.item_ids[log.items[a:b]].tolist() for a, b in cut]
        assert log.times is not None
        times = [log.times[a:b].tolist() for a, b in cut]
        of_log = recommender.recommend_users(log.user_ids.tolist(), k=5)
        assert recommender.recommend(histories, k=5, times=times) == of_log

    def test_seen_items_where_they_are_asked_for(self, model) -> None:
        recommender, log, scores = model
        found = recommender.recommend_users(log.user_ids[:6].tolist(), k=5, include_seen=True)
        for one, own in zip(found, scores, strict=False):
            check(one, own, 5)

    def test_fewer_items_are_the_best_of_more_and_of_one_program(self, model) -> None:
        recommender, log, _ = model
        users = log.user_ids[:3].tolist()
        most = recommender.recommend_users(users, k=32)
        compiled = module.top_items._cache_size()
        for k in (1, np.int64(2), 17, 31):
            found = recommender.recommend_users(users, k=k)
            assert [one.items for one in found] == [one.items[:k] for one in most]
            assert [one.scores for one in found] == [one.scores[:k] for one in most]
        assert module.top_items._cache_size() == compiled

    def test_all_items_and_no_more(self, model) -> None:
        recommender, log, _ = model
        (one,) = recommender.recommend_users(log.user_ids[:1].tolist(), k=9999)
        seen = set(log.items[: log.offsets[1]].tolist())
        assert set(one.items) == set(range(1, log.num_items + 1)) - seen
        assert list(one.scores) == sorted(one.scores, reverse=True)


class TestBlocks:
    def test_a_user_gets_the_same_alone_and_in_any_company(self, run, monkeypatch) -> None:
        users = simulated(run).user_ids.tolist()
        whole = Recommender.load(run).recommend_users(users, k=5)
        monkeypatch.setattr(module, "BLOCK", 7)
        small = Recommender.load(run)
        for one, other in zip(small.recommend_users(users, k=5), whole, strict=True):
            assert one.items == other.items
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)

    def test_times_of_a_later_block(self, run, monkeypatch) -> None:
        monkeypatch.setattr(module, "BLOCK", 7)
        recommender = Recommender.load(run)
        histories = [[1, 2]] * 8
        with pytest.raises(UserError, match="times: one for each"):
            recommender.recommend(histories, k=5, times=[[1, 2]] * 7)
        turned = recommender.recommend(histories, k=5, times=[*[[1, 2]] * 7, [2, 1]])
        assert turned[7] == recommender.recommend([[2, 1]], k=5)[0]
        assert turned[7] != turned[6]


class TestUnknown:
    def test_no_known_item_is_popularity(self, run) -> None:
        recommender = Recommender.load(run)
        nobody, empty, known = recommender.recommend([["x", "y"], [], [5, "z", 7]], k=5)
        log = simulated(run)
        counts = np.bincount(log.items, minlength=log.num_items + 1)
        most = np.argsort(-counts[1:], kind="stable")[:5] + 1
        assert nobody.items == empty.items == tuple(most.tolist())
        assert np.isnan(nobody.scores).all()
        assert (nobody.basis, nobody.unknown_items) == ("popularity", 2)
        assert (empty.basis, empty.unknown_items) == ("popularity", 0)
        assert (known.basis, known.unknown_items) == ("history", 1)
        assert known.items == recommender.recommend([[5, 7]], k=5)[0].items

    def test_a_user_who_is_not_in_the_log(self, run) -> None:
        (one,) = Recommender.load(run).recommend_users(["nobody"], k=5)
        assert one.basis == "popularity"

    def test_ids_of_text(self, texts) -> None:
        (one,) = Recommender.load(texts).recommend([["the hit", "item 3"]], k=41)
        assert len(one.items) == 41
        assert set(one.items).isdisjoint({"the hit", "item 3"})
        assert {item[:5] for item in one.items} == {"item "}


class TestChoice:
    def test_the_best_by_validation(self, run) -> None:
        trained = Recommender.load(run).trained
        assert (trained.key, trained.name) == ("sasrec+hbr+nns+dpa", "SASRec+HBR+NNS+DPA")
        assert (trained.figure, trained.chosen_by) == (0.2, "validation")

    def test_by_test_where_there_is_no_validation(self, copied) -> None:
        for path in (copied / "phases").glob("*.json"):
            record = json.loads(path.read_text())["record"]
            record["model"]["validation"] = None
            path.write_text(json.dumps(record))  # without its seal, as older runs have it
        trained = Recommender.load(copied).trained
        assert (trained.key, trained.chosen_by) == ("sasrec", "test")

    @pytest.mark.parametrize(
        ("variant", "key"),
        [
            ("base", "sasrec"),
            ("sasrec", "sasrec"),
            ("dpa+nns+hbr", "sasrec+hbr+nns+dpa"),
            ("sasrec+nns+hbr+dpa", "sasrec+hbr+nns+dpa"),
            ("diffusion", "diffusion"),
        ],
    )
    def test_by_name(self, run, variant, key) -> None:
        assert Recommender.load(run, variant).trained.key == key

    @pytest.mark.parametrize("variant", ["", "hbr", "gru4rec", "base+base+x", "../x"])
    def test_an_unknown_name(self, run, variant) -> None:
        with pytest.raises(UserError, match=r"has diffusion, sasrec, sasrec\+hbr\+nns\+dpa, got"):
            Recommender.load(run, variant)

    def test_other_encoders(self, make_run, scores_of, tmp_path) -> None:
        run = make_run(tmp_path / "run", **{"encoder.name": "gru4rec"})
        log = simulated(run)
        scores = scores_of(run, "gru4rec+hbr+nns+dpa", log)
        scores[:, 0] = -np.inf
        found = Recommender.load(run).recommend_users(log.user_ids.tolist(), k=5, include_seen=True)
        for one, own in zip(found, scores, strict=True):
            check(one, own, 5)


class TestDirectories:
    def broken(self, run: Path, complaint: str) -> None:
        with pytest.raises(UserError, match=complaint) as caught:
            Recommender.load(run)
        assert "\n" not in str(caught.value)

    def test_no_run(self, tmp_path) -> None:
        self.broken(tmp_path, "the workdir of a run is expected")
        self.broken(tmp_path / "none", "the workdir of a run is expected")

    def test_several_seeds(self, copied) -> None:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "seeds": 2}))
        self.broken(copied, "holds several seeds, name the folder of one.*seed-0")

    def test_nothing_trained_yet(self, copied) -> None:
        for path in (copied / "phases").glob("sasrec*"):
            path.unlink()
        self.broken(copied, "no encoder is trained yet; --variant=diffusion .* TI-DiffRec")
        (copied / "phases" / "diffusion.json").unlink()
        self.broken(copied, "no trained model is in it yet")

    @pytest.mark.parametrize("key", ["sasrec+hbr+nns+dpa", "sasrec"])
    def test_a_damaged_record(self, copied, capsys, key) -> None:
        """It may be that of the best model, or of a better one than is left."""
        record = copied / "phases" / f"{key}.json"
        record.write_text(record.read_text().replace("NDCG@10", "NDCG@11", 1))
        self.broken(copied, re.escape(f"phases/{key}.json: it or its arrays are not as they were"))
        with pytest.raises(UserError, match=re.escape(f"the run does {key} anew")):
            Recommender.load(copied, key)
        assert Recommender.load(copied, "diffusion").trained.key == "diffusion"
        assert capsys.readouterr().err == ""

    def test_no_catalogue(self, copied) -> None:
        (copied / CATALOGUE).unlink()
        self.broken(copied, "catalogue.npz: not there")

    def test_a_model_whose_scores_are_no_products(self, copied) -> None:
        config = json.loads((copied / "config.json").read_text())
        config["diffusion"]["normalise"] = True
        (copied / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="choose an encoder"):
            Recommender.load(copied, "diffusion")


class TestLog:
    @pytest.fixture
    def moved(self, texts: Path, tmp_path: Path) -> tuple[Path, Path]:
        """A log and a run on it that a test may spoil."""
        folder = tmp_path / "texts"
        shutil.copytree(texts.parent, folder)
        run, log = folder / "run", folder / "log.csv"
        save_catalogue(run, dataclasses.replace(load_catalogue(run), places=(str(log),)))
        return log, run

    def test_the_very_log(self, texts) -> None:
        (one,) = Recommender.load(texts).recommend_users(["u7"], k=50)
        assert len(one.items) == 39
        assert set(one.items).isdisjoint({"the hit", *(f"item {n}" for n in range(8, 12))})

    def test_a_moved_log(self, moved) -> None:
        log, run = moved
        there = log.rename(log.with_name("other.csv"))
        recommender = Recommender.load(run)
        with pytest.raises(UserError, match=r"log\.csv: the log of the run is not there"):
            recommender.recommend_users(["u1"])
        recommender.users_of_log([there])
        assert recommender.recommend_users(["u1"])[0].basis == "history"

    def test_another_log(self, moved) -> None:
        log, run = moved
        log.write_text(log.read_text() + "u1,item 40,9999\n")
        with pytest.raises(UserError, match="another content, by its checksum"):
            Recommender.load(run).recommend_users(["u1"])

    def test_histories_need_no_log(self, moved) -> None:
        log, run = moved
        log.unlink()
        assert Recommender.load(run).recommend([["item 3"]])[0].basis == "history"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[Path]:
    """Logs of two domains with the same ids: users take turns between the two."""
    folder = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(3)
    for name, items, late in (("target", 60, 0), ("source", 45, 1)):
        rows = [f"{u},{i},{2 * n + late}" for u in range(1, 31)
                for n, i in enumerate(rng.permutation(items)[:6] + 1)]  # fmt: skip
        path = folder / f"{name}.csv"
        path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return [folder / "target.csv", folder / "source.csv"]


class TestSourceDomain:
    @pytest.mark.parametrize("mixed", [False, True])
    def test_only_the_target_is_recommended(
        self, make_run: Callable[..., Path], scores_of, two: list[Path], tmp_path: Path, mixed: bool
    ) -> None:
        fields = {"data.source": "real", "data.mixed": mixed, "dpa.coarse": 5}
        names = {"data.target": str(two[0]), "data.auxiliary": str(two[1])}
        run = make_run(tmp_path / "run", two, **fields, **names)
        config = Workdir.open(run).config
        log, _ = sources.load(config, two)
        if not mixed:
            log = sources.load(config, two[:1])[0]
        scores = scores_of(run, "sasrec+hbr+nns+dpa", log)
        scores[:, 0] = scores[:, log.num_target_items + 1 :] = -np.inf
        found = Recommender.load(run).recommend_users(log.user_ids.tolist(), k=5)
        for user, one in enumerate(found):
            own = scores[user].copy()
            own[log.items[log.offsets[user] : log.offsets[user + 1]]] = -np.inf
            items = np.searchsorted(log.item_ids[1 : log.num_target_items + 1], one.items) + 1
            check(module.Recommendation(tuple(items.tolist()), one.scores, one.basis, 0), own, 5)


class TestPackage:
    def test_it_is_offered_by_the_package(self) -> None:
        assert pdrec_jax.Recommender is Recommender
        with pytest.raises(AttributeError, match="no attribute 'recommender'"):
            _ = pdrec_jax.recommender

    def test_the_input_of_the_test_is_one_event_short_of_what_is_used_here(self, run) -> None:
        log = simulated(run)
        given, _ = prepare(Workdir.open(run).config, None)
        assert extend_train(given.split)[0][-1] == log.num_events - log.num_users

    def test_k_below_one(self, run) -> None:
        with pytest.raises(UserError, match="k: an integer of at least 1"):
            Recommender.load(run).recommend([[1]], k=0)


class TestArguments:
    @pytest.mark.parametrize(
        ("histories", "more", "complaint"),
        [
            (["item 1", "item 2"], {}, "histories: user 0: a list of items is expected, got 'item"),
            ([[1], b"2"], {}, "histories: user 1: a list of items is expected, got b'2'"),
            ([1, 2], {}, "histories: user 0: a list of items is expected, got 1"),
            ("item 1", {}, "histories: a list with a list of items for each user is expected"),
            (
                None,
                {},
                "histories: a list with a list of items for each user is expected, got None",
            ),
            ([[1]], {"k": 2.0}, "k: an integer of at least 1 is expected, got 2.0"),
            ([[1]], {"k": "2"}, "k: an integer of at least 1 is expected, got '2'"),
            ([["a"]], {"k": True}, "k: an integer of at least 1 is expected, got True"),
            ([], {"k": 0}, "k: an integer of at least 1 is expected, got 0"),
            ([[1]], {"times": [["2024-05-01"]]}, "times: finite numbers are expected"),
            ([[1]], {"times": [["5"]]}, "times: finite numbers are expected"),
            ([[1]], {"times": [[np.datetime64("2024-05-01")]]}, "times: finite numbers"),
            ([[1]], {"times": [[datetime.date(2024, 5, 1)]]}, "times: finite numbers"),
            ([[1]], {"times": [[None]]}, "times: finite numbers are expected"),
            ([[1]], {"times": [[10**400]]}, "times: finite numbers are expected"),
            ([[1, 2]], {"times": [[[1], [2, 3]]]}, "times: finite numbers are expected"),
            ([[1]], {"times": [[[1]]]}, "times: finite numbers are expected"),
            ([[1]], {"times": ["1"]}, "times: user 0: a list of numbers is expected, got '1'"),
            ([[1]], {"times": [1]}, "times: user 0: a list of numbers is expected, got 1"),
            ([[1]], {"times": 1}, "times: a list with a list of numbers for each user"),
        ],
    )
    def test_what_is_expected_is_said(self, run, histories, more, complaint) -> None:
        with pytest.raises(UserError, match=f"^{re.escape(complaint)}"):
            Recommender.load(run).recommend(histories, **more)

    @pytest.mark.parametrize("users", ["user 1", b"1", None, 7])
    def test_users_are_a_list(self, run, users) -> None:
        with pytest.raises(UserError, match="users: a list of ids is expected, got "):
            Recommender.load(run).recommend_users(users)

    def test_whatever_can_be_listed_is_taken(self, run) -> None:
        recommender = Recommender.load(run)
        expected = recommender.recommend([[5, 7], [9, 3]], k=3, times=[[1, 2], [4, 3]])
        array = recommender.recommend(
            np.array([[5, 7], [9, 3]]), k=np.int64(3), times=np.array([[1, 2], [4, 3]], np.int32)
        )
        lazy = recommender.recommend(
            (iter(own) for own in ([5, 7], [9, 3])), k=3, times=(x for x in ((1, 2.0), (4, 3)))
        )
        assert array == lazy == expected
        of_log = recommender.recommend_users([1, 2], k=3)
        assert recommender.recommend_users((user for user in "12"), k=3) == of_log
