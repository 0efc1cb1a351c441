"""The sum of two models' scores, against scores that are standardised and added in NumPy."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from pdrec_jax import compare, keep
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.errors import UserError
from pdrec_jax.fuse import __main__ as command
from pdrec_jax.given import prepare
from pdrec_jax.recommend import __main__ as recommend
from pdrec_jax.recommend.recommender import Recommender
from pdrec_jax.settings import put
from pdrec_jax.workdir import Workdir

WEIGHTS = (0.0, 0.3, 2.0)
KEYS = ("sasrec", "diffusion")


def given_of(path: Path):
    return prepare(Workdir.open(path).config, None)[0]


def ranked(scores, given, candidates, history):
    """Ranks among the candidates and in the catalogue, [U'] each, user by user."""
    last = given.split.train.num_target_items
    sampled, full = [], []
    for user in np.flatnonzero(given.users.encoder):
        own, (relevant, *others) = scores[user], candidates[user]
        seen = history.items[history.offsets[user] : history.offsets[user + 1]]
        rest = np.setdiff1d(np.arange(1, last + 1), [*seen, relevant])
        for negatives, found in ((others, sampled), (rest, full)):
            ties = (own[negatives] == own[relevant]).sum() / 2
            found.append((own[negatives] > own[relevant]).sum() + ties)
    return np.array(sampled), np.array(full)


def standardised(scores, last):
    return scores / scores[:, 1 : last + 1].std(axis=1, keepdims=True)


def summed(run, given, history, scores_of, weight):
    last = given.split.train.num_target_items
    first, second = (standardised(scores_of(run, key, history), last) for key in KEYS)
    return first + weight * second


def require_ranks_of_the_sum(run, out, scores_of):
    """Checks the ranks of the test that the command has left, of a run's own two models."""
    (model,) = json.loads((out / "results.json").read_text())["models"]
    given = given_of(run)
    history, users = given.split.before_test(), given.users.encoder
    scores = summed(run, given, history, scores_of, model["weight"])
    expected = ranked(scores, given, given.candidates, history)
    arrays = Workdir.open(out).per_user()
    for kind, ranks in zip(("sampled", "full"), expected, strict=True):
        found = arrays[f"fused/{kind}_rank"]
        assert np.isnan(found[~users]).all()
        # A rounding may turn two neighbours around.
        assert np.abs(found[users] - ranks).max() <= 1
        assert (found[users] == ranks).mean() > 0.97


@pytest.fixture(scope="module")
def make_finished(make_run, finish, scores_of):
    """`make_run`, and the run's results with the ranks of its models."""

    def make_finished(path: Path, **fields) -> Path:
        given = given_of(make_run(path, **fields))
        history = given.split.before_test()

        def ranks_of(key):
            return ranked(scores_of(path, key, history), given, given.candidates, history)

        finish(path, given, ranks_of)
        return path

    return make_finished


def copied(run: Path, to: Path, **fields) -> Path:
    """A copy of a run that a test may spoil, with some fields of its config changed."""
    shutil.copytree(run, to)
    if fields:
        config = Workdir.open(run).config
        for field, value in fields.items():
            put(config, field, value)
        (to / "config.json").write_text(config.to_json())
    return to


@pytest.fixture(scope="module")
def finished(make_finished, tmp_path_factory) -> Path:
    return make_finished(tmp_path_factory.mktemp("fuse") / "run")


@pytest.fixture(scope="module")
def fused(finished) -> tuple[Path, dict]:
    """What the command makes of the run's encoder and its diffusion model, and the results."""
    out = finished.parent / "fused"
    assert call(f"{finished}:sasrec", f"{finished}:diffusion", f"--out={out}") == 0
    return out, json.loads((out / "results.json").read_text())


def call(*words, weights=WEIGHTS) -> int:
    return command.main([*map(str, words), f"--weights={','.join(map(str, weights))}"])


def test_each_weight_ranks_as_the_sum_of_standardised_scores(finished, fused, scores_of):
    _, results = fused
    given = given_of(finished)
    train = given.split.train
    (model,) = results["models"]
    for weight in WEIGHTS:
        scores = summed(finished, given, train, scores_of, weight)
        ranks, _ = ranked(scores, given, given.validation, train)
        expected = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
        assert model["weights"][f"{weight:g}"] == pytest.approx(expected, abs=2e-3)


def test_validation_chooses_the_weight_and_the_test_is_ranked_by_it(finished, fused, scores_of):
    out, results = fused
    (model,) = results["models"]
    best = max(model["weights"].values())
    assert model["weights"][f"{model['weight']:g}"] == best == model["validation"]["NDCG@10"]
    require_ranks_of_the_sum(finished, out, scores_of)


def test_of_two_domains_the_target_alone_is_ranked(make_finished, tmp_path, scores_of):
    domains = {"data.mixed": True, "simulation.num_source_items": 200}
    run, out = make_finished(tmp_path / "run", **domains), tmp_path / "out"
    assert call(f"{run}:sasrec", f"{run}:diffusion", f"--out={out}") == 0
    train = given_of(run).split.train
    assert train.items.max() > train.num_target_items
    require_ranks_of_the_sum(run, out, scores_of)
    targets = set(train.item_ids[1 : train.num_target_items + 1].tolist())
    for one in Recommender.load(out).recommend_users(train.user_ids[:9].tolist(), k=100):
        assert set(one.items) <= targets


def test_weight_zero_is_the_first_model(finished, tmp_path):
    given = given_of(finished)
    out = tmp_path / "out"
    assert call(f"{finished}:sasrec", f"{finished}:diffusion", f"--out={out}", weights=[0]) == 0
    own, found = (Workdir.open(path).per_user() for path in (finished, out))
    for kind in ("sampled", "full"):
        pair = own[f"sasrec/{kind}_rank"], found[f"fused/{kind}_rank"]
        one, other = (ranks[given.users.encoder] for ranks in pair)
        assert np.abs(one - other).max() <= 1
        assert (one == other).mean() > 0.97


def test_under_reference_the_test_chooses(make_finished, tmp_path):
    run, out = make_finished(tmp_path / "run", protocol="reference"), tmp_path / "out"
    assert call(f"{run}:sasrec", f"{run}:diffusion", f"--out={out}") == 0
    (model,) = json.loads((out / "results.json").read_text())["models"]
    assert model["validation"] is None
    assert max(model["weights"].values()) == model["sampled"]["NDCG@10"]


class TestServing:
    def test_the_scores_are_the_sum(self, finished, fused, scores_of):
        out, results = fused
        (model,) = results["models"]
        recommender = Recommender.load(out)
        log = sources.load(Workdir.open(finished).config, None)[0]
        scores = summed(finished, given_of(finished), log, scores_of, model["weight"])
        for one, own in zip(
            recommender.recommend_users(log.user_ids[:9], k=5), scores, strict=False
        ):
            np.testing.assert_allclose(one.scores, own[list(one.items)], rtol=1e-3, atol=1e-3)
            assert list(one.scores) == sorted(one.scores, reverse=True)

    def test_it_says_what_it_is_and_has_no_other_variant(self, fused):
        out, _ = fused
        assert "SASRec & TI-DiffRec (validation NDCG@10" in Recommender.load(out).title
        with pytest.raises(UserError, match="has fused alone, got 'base'"):
            Recommender.load(out, "base")

    def test_a_damaged_recipe(self, fused, tmp_path):
        out = Path(shutil.copytree(fused[0], tmp_path / "out"))
        recipe = json.loads((out / "fused.json").read_text())
        for damage in (
            {"weight": "x"},
            {"workdirs": ["a"]},
            {"weight": float("nan")},
            {"figures": [1]},
        ):
            (out / "fused.json").write_text(json.dumps(recipe | damage))
            with pytest.raises(UserError, match=r"fused\.json: not what `fuse` writes"):
                Recommender.load(out)

    def test_a_model_that_was_trained_anew(self, finished, tmp_path):
        run, out = copied(finished, tmp_path / "run"), tmp_path / "out"
        assert call(f"{run}:sasrec", f"{run}:diffusion", f"--out={out}") == 0
        phases = Workdir.open(run).phases
        model = phases.find("diffusion")["model"] | {"validation": {"NDCG@10": 0.41}}
        phases.finish("diffusion", {"model": model})
        with pytest.raises(UserError, match="diffusion was trained anew since"):
            Recommender.load(out)

    def test_a_run_that_is_gone(self, fused, tmp_path):
        out = Path(shutil.copytree(fused[0], tmp_path / "out"))
        recipe = json.loads((out / "fused.json").read_text())
        recipe["workdirs"][1] = str(tmp_path / "gone")
        (out / "fused.json").write_text(json.dumps(recipe))
        with pytest.raises(UserError, match="gone: the workdir of a run is expected"):
            Recommender.load(out)


class TestTheRun:
    def test_others_read_it(self, finished, fused, tmp_path, capsys):
        out, _ = fused
        assert compare.main([f"{finished}:sasrec", str(out)]) == 0
        assert "fused: SASRec & TI-DiffRec less run: sasrec" in capsys.readouterr().out
        assert keep.main([str(out), f"--out={tmp_path}"]) == 0
        assert Workdir.open(tmp_path / "fused").results() is not None

    def test_the_mesh_of_the_training_need_not_be_here(self, finished, fused, tmp_path):
        run, out = copied(finished, tmp_path / "run", mesh=(8, 1)), tmp_path / "out"
        assert call(f"{run}:sasrec", f"{run}:diffusion", f"--out={out}") == 0
        found = (Workdir.open(path).per_user() for path in (out, fused[0]))
        one, other = (arrays["fused/full_rank"] for arrays in found)
        np.testing.assert_array_equal(one, other)

    def test_no_command_takes_it_for_its_own(self, finished, fused):
        with pytest.raises(UserError, match="another config, which differs in name"):
            Workdir(fused[0], Workdir.open(finished).config, "simulated")

    def test_the_same_command_again(self, finished, fused):
        out, results = fused
        assert call(f"{finished}:sasrec", f"{finished}:diffusion", f"--out={out}") == 0
        assert json.loads((out / "results.json").read_text()) == results

    def test_several_seeds_and_one_model_that_serves_for_all(
        self, finished, make_finished, tmp_path, capsys
    ):
        home, out = tmp_path / "several", tmp_path / "out"
        config = Workdir.open(finished).config
        config.seeds, config.simulation.seed = 2, 0
        Workdir(home, config, "simulated").begin(Workdir.open(finished).data)
        for seed in (0, 1):
            make_finished(home / f"seed-{seed}", seed=seed, **{"simulation.seed": 0})
        assert call(f"{home}:sasrec", f"{finished}:diffusion", f"--out={out}") == 0
        said = capsys.readouterr().out
        assert "seeds 0 to 1" in said
        assert "seed 1: weight" in said
        summary = json.loads((out / "results.json").read_text())
        assert summary["seeds"] == [0, 1]
        (mean,), each = summary["models"], []
        for seed in (0, 1):
            place = Workdir.open(out / f"seed-{seed}")
            (model,) = place.results()["models"]
            each.append(model["sampled"]["NDCG@10"])
        assert mean["sampled"]["NDCG@10"] == pytest.approx(np.mean(each))
        assert len(mean["by_seed"]["weight"]) == 2
        assert "weight" not in mean
        assert keep.main([str(out), f"--out={tmp_path / 'kept'}"]) == 0
        before = sorted(path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file())
        shutil.move(home / "seed-1/encoders", home / "elsewhere")
        assert call(f"{home}:sasrec", f"{finished}:diffusion", f"--out={out}") == 2
        assert "no checkpoint here" in capsys.readouterr().err
        assert before == sorted(p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file())
        (home / "seed-1/results.json").unlink()
        assert call(f"{home}:sasrec", f"{finished}:diffusion", f"--out={out}") == 2
        assert "several:sasrec: seed 1 is not finished" in capsys.readouterr().err


class TestMistakes:
    def said(self, capsys, *words, weights=WEIGHTS) -> str:
        assert call(*words, weights=weights) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    def test_no_such_model(self, finished, tmp_path, capsys):
        error = self.said(capsys, f"{finished}:gru4rec", finished, f"--out={tmp_path / 'out'}")
        assert "no model 'gru4rec'" in error
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("weights", [[-1], ["x"], [0.5, 0.5], [0.1, 0.10000001], ["nan"], [""]])
    def test_weights(self, finished, tmp_path, capsys, weights):
        models = f"{finished}:sasrec", f"{finished}:diffusion"
        error = self.said(capsys, *models, f"--out={tmp_path / 'out'}", weights=weights)
        assert "--weights" in error

    def test_a_place_that_is_taken(self, finished, tmp_path, capsys):
        models = f"{finished}:sasrec", f"{finished}:diffusion"
        (tmp_path / "file").write_text("a file")
        for out in (finished, finished / "new", finished.parent, tmp_path / "file/below"):
            assert "--out" in self.said(capsys, *models, f"--out={out}")
        (tmp_path / "file").unlink()
        (tmp_path / "mine.txt").write_text("mine")
        assert "not empty and not a run" in self.said(capsys, *models, f"--out={tmp_path}")

    def test_a_model_with_itself(self, finished, tmp_path, capsys):
        models = f"{finished}:sasrec", f"{finished}:sasrec"
        assert "named twice" in self.said(capsys, *models, f"--out={tmp_path / 'out'}")

    def test_a_log_that_the_other_run_reads_in_another_way(
        self, finished, make_finished, tmp_path, capsys
    ):
        """The second model would get histories without times."""
        timeless = copied(finished, tmp_path / "timeless", **{"data.time": ""})
        models = f"{timeless}:sasrec", f"{finished}:diffusion"
        error = self.said(capsys, *models, f"--out={tmp_path / 'out'}")
        assert "config.data.time is 'timestamp', and ''" in error

    def test_results_of_another_form(self, finished, tmp_path, capsys):
        run = copied(finished, tmp_path / "run")
        results = json.loads((run / "results.json").read_text())
        del results["models"][0]["best_epoch"]
        (run / "results.json").write_text(json.dumps(results))
        error = self.said(capsys, f"{run}:sasrec", f"{run}:diffusion", f"--out={tmp_path / 'out'}")
        assert "results.json: not what a run writes (KeyError: 'best_epoch')" in error

    def test_scores_that_are_no_numbers(self, finished, tmp_path, capsys):
        run = copied(finished, tmp_path / "run")
        items = given_of(run).split.train.num_items
        _, initialise = encoder_stage.make_model(Workdir.open(run).config, (), items)
        params = jax.tree.map(
            lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), jax.eval_shape(initialise)
        )
        shutil.rmtree(run / "encoders/sasrec")
        Store(run / "encoders/sasrec").save("best", 1, params, {})
        error = self.said(capsys, f"{run}:sasrec", f"{run}:diffusion", f"--out={tmp_path / 'out'}")
        assert "a score of SASRec & TI-DiffRec is not finite" in error
        assert not (tmp_path / "out").exists()

    def test_what_other_models_have_left(self, finished, fused, capsys):
        models = f"{finished}:sasrec+hbr+nns+dpa", f"{finished}:diffusion"
        error = self.said(capsys, *models, f"--out={fused[0]}")
        assert "holds SASRec & TI-DiffRec, other models than these" in error

    def test_it_is_no_run_with_models(self, finished, fused, tmp_path, capsys):
        models = str(fused[0]), f"{finished}:diffusion"
        error = self.said(capsys, *models, f"--out={tmp_path / 'out'}")
        assert "`fuse` added two models' scores there" in error

    def test_what_is_recommended_is_not_written_into_either_run(
        self, finished, make_finished, tmp_path, capsys
    ):
        other, out = make_finished(tmp_path / "other"), tmp_path / "out"
        assert call(f"{finished}:sasrec", f"{other}:diffusion", f"--out={out}", weights=[1]) == 0
        capsys.readouterr()
        for run in (finished, other):
            target = run / "metrics.jsonl"
            words = [f"--workdir={out}", "--all_users", f"--out={target}"]
            assert recommend.main(words) == 2
            assert f"is within the run {run}" in capsys.readouterr().err

    def test_models_that_were_not_kept(self, finished, tmp_path, capsys):
        assert keep.main([str(finished), f"--out={tmp_path / 'kept'}"]) == 0
        capsys.readouterr()
        models = f"{tmp_path / 'kept/run'}:sasrec", f"{finished}:diffusion"
        assert "without its models" in self.said(capsys, *models, f"--out={tmp_path / 'out'}")
        assert not (tmp_path / "out").exists()

    def test_other_candidates(self, finished, make_finished, tmp_path, capsys):
        other = make_finished(tmp_path / "other", **{"evaluation.negatives": 30})
        models = f"{finished}:sasrec", f"{other}:diffusion"
        error = self.said(capsys, *models, f"--out={tmp_path / 'out'}")
        assert "config.evaluation.negatives is 30, and 20" in error

    def test_a_log_that_is_not_asked_for(self, finished, tmp_path, capsys):
        models = f"{finished}:sasrec", f"{finished}:diffusion"
        error = self.said(capsys, *models, f"--out={tmp_path / 'out'}", "--log=log.csv")
        assert "was simulated" in error
