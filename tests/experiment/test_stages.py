"""Stages alone, one after the other, on another run's preferences, and the other protocol."""

import shutil

import pytest

from pdrec_jax import other_runs
from pdrec_jax.checkpoints import Store
from pdrec_jax.errors import UserError
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.phase_records import PhaseRecords
from pdrec_jax.workdir import Workdir

KEYS = ["diffusion", "sasrec", "sasrec+hbr+nns+dpa"]
DIFFUSION, ENCODER = "--config.stage=diffusion", "--config.stage=encoder"


def test_the_reference_protocol(reference, strict) -> None:
    assert reference.status == 0
    lines = reference.out.splitlines()
    assert lines[0] == "SIMULATED DATA | tiny | protocol reference | seed 0"
    assert lines[-1].startswith("SIMULATED DATA: ")
    models = reference.results["models"]
    assert [model["key"] for model in models] == KEYS
    assert all(model["validation"] is None for model in models)
    assert models[1]["users"] < strict.results["models"][1]["users"]
    # The test itself chooses the epoch.
    best = dict.fromkeys(KEYS, 0.0)
    for line in reference.losses:
        best[line["stage"]] = max(best[line["stage"]], line["ndcg"])
    chosen = [model["sampled"]["NDCG@10"] for model in models]
    assert chosen == pytest.approx(list(best.values()), rel=1e-6)
    assert (reference.path / "report.md").is_file()
    assert reference.half_written == []


def test_diffusion_first_then_all(strict, call, tmp_path) -> None:
    first = call(tmp_path, DIFFUSION)
    results = first.results
    assert (first.status, results["stage"]) == (0, "diffusion")
    assert [model["key"] for model in results["models"]] == KEYS[:1]
    assert first.out.splitlines()[0].startswith("SIMULATED DATA | ")
    assert first.out.splitlines()[-1].startswith("SIMULATED DATA: ")

    def of_diffusion(stamps):
        folders = ("diffusion", "preferences", "phases/diffusion", "phases/preferences")
        return {name: stamp for name, stamp in stamps.items() if name.startswith(folders)}

    kept = of_diffusion(first.stamps)
    assert "finished, these are" in call(tmp_path, DIFFUSION).out
    done = call(tmp_path)
    assert done.status == 0
    assert done.lasting == strict.lasting
    assert done.losses == strict.losses
    assert of_diffusion(done.stamps) == kept


def test_diffusion_first_then_the_encoder(strict, call, tmp_path) -> None:
    call(tmp_path, DIFFUSION)
    done = call(tmp_path, ENCODER)
    assert done.lasting == strict.lasting  # both stages are there, so that it is a run of all
    assert "finished, these are" in call(tmp_path).out


class TestPreferencesOfAnotherRun:
    @pytest.fixture
    def flags(self, strict) -> list[str]:
        return [ENCODER, f"--config.preferences_from={strict.path}"]

    def test_each_plugin_alone(self, strict, call, flags, tmp_path) -> None:
        source = strict.stamps
        done = call(tmp_path, *flags, "--config.encoder.variants=('hbr','nns','dpa')")
        assert done.status == 0
        assert done.results["stage"] == "encoder"
        names = ["SASRec+HBR", "SASRec+NNS", "SASRec+DPA"]
        assert [model["name"] for model in done.results["models"]] == names
        assert done.results["plugins"] == strict.results["plugins"]
        assert strict.stamps == source
        assert not (tmp_path / "diffusion").exists()
        first = {x["stage"]: x["loss"] for x in done.losses + strict.losses if x["epoch"] == 1}
        assert len(first) == 6
        assert len({round(loss, 4) for loss in first.values()}) == 6  # no plugin does nothing

    def test_the_same_encoders(self, strict, call, flags, tmp_path) -> None:
        assert call(tmp_path, *flags).results["models"] == strict.results["models"][1:]

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("protocol=reference", "protocol (strict), expected reference"),
            ("seed=1", "split ("),
            ("dpa.coarse=11", "rules (candidates 10, "),
            ("nns.first_fraction=0.4", "rules (candidates 10, "),
        ],
    )
    def test_that_were_made_for_something_else(
        self, strict, call, flags, tmp_path, flag, message
    ) -> None:
        done = call(tmp_path / "run", *flags, f"--config.{flag}")
        assert done.status == 2
        start = f"error: {strict.path}: its preferences were made with another {message}"
        assert done.err.startswith(start)
        assert done.err.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_that_are_others_since(self, strict, call, tmp_path, monkeypatch) -> None:
        source, run = tmp_path / "source", tmp_path / "run"
        shutil.copytree(strict.path, source)
        flags = [ENCODER, f"--config.preferences_from={source}"]
        flags += ["--config.encoder.variants=('hbr','nns')"]
        write = MetricLog.write

        def write_and_die(log: MetricLog, name: str, epoch: int, **values: float) -> None:
            write(log, name, epoch, **values)
            if name == "sasrec+nns":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricLog, "write", write_and_die)
            assert call(run, *flags).status == 130
        other = call(tmp_path / "other", DIFFUSION, "--config.diffusion.learning_rate=0.01")
        shutil.rmtree(source / "preferences")
        shutil.copytree(other.path / "preferences", source / "preferences")
        refused = call(run, *flags)
        assert refused.status == 2
        assert refused.err.endswith(
            f"error: config.preferences_from: the preferences in {source} are others than those "
            f"that the run in {run} was begun with; name another --workdir, or put those back\n"
        )
        # Nothing is known of what an earlier version has begun with.
        records = PhaseRecords(run / "phases")
        record = records.find("preferences")
        assert record.pop("identity")
        records.finish("preferences", record)
        assert call(run, *flags).status == 0

    def test_a_field_by_hand_that_contradicts_them(self, strict, call, flags, tmp_path) -> None:
        done = call(tmp_path / "run", *flags, "--config.diffusion.w_min=0.4")
        assert (done.status, (tmp_path / "run").exists()) == (2, False)
        assert done.err == (
            f"error: config.preferences_from: the preferences in {strict.path} were made with "
            "diffusion.w_min 0.5, expected 0.4\n"
        )
        config = Workdir.open(strict.path).config
        config.preferences_from = str(strict.path)
        config.diffusion.update(w_min=0.4, patience=3, both=True)
        by_hand = {"diffusion.patience", "diffusion.both", "encoder.epochs"}
        other_runs.require_like_source(config, by_hand)  # a config file's own are another variant's
        with pytest.raises(UserError, match=r"diffusion\.w_min"):
            other_runs.require_like_source(config, {*by_hand, "diffusion.w_min"})


class TestDiffusionModelOfAnotherRun:
    def test_the_same_run_without_its_training(self, strict, call, tmp_path) -> None:
        source = strict.stamps
        done = call(tmp_path, f"--config.diffusion_from={strict.path}")
        assert done.status == 0, done.err
        ours, theirs = done.results["models"], strict.results["models"]
        assert ours[0].pop("origin") == str(strict.path)
        for model in (ours[0], theirs[0]):
            model.pop("seconds", None)
        assert (
            ours
            == [{k: v for k, v in m.items() if k != "seconds"} for m in theirs[:1]] + theirs[1:]
        )
        assert {line["stage"] for line in done.losses} == {"sasrec", "sasrec+hbr+nns+dpa"}
        assert strict.stamps == source
        assert "finished, these are" in call(tmp_path, f"--config.diffusion_from={strict.path}").out

    def test_that_was_damaged_since_is_taken_again(self, strict, call, tmp_path) -> None:
        source, run = tmp_path / "source", tmp_path / "run"
        shutil.copytree(strict.path, source)
        flags = (DIFFUSION, f"--config.diffusion_from={source}")
        first = call(run, *flags)
        for path in run.glob("diffusion/best/*/tree/d/*"):
            path.write_bytes(path.read_bytes()[:-1])
        shutil.move(source, tmp_path / "moved")
        gone = call(run, *flags)  # what cannot be taken is not trained
        assert gone.status == 2
        assert f"error: {source}: the workdir of a run is expected" in gone.err
        assert gone.results == first.results
        shutil.move(tmp_path / "moved", source)
        done = call(run, *flags)
        assert done.status == 0, done.err
        assert done.lasting == first.lasting
        assert not (run / "metrics.jsonl").exists() or done.losses == []
        assert f"diffusion is taken from {source} again\n" in done.err
        assert "trained anew" not in done.err
        assert call(run, *flags).err == ""

    @pytest.mark.parametrize(
        ("flag", "plugin"), [("nns.first_fraction=0.4", "nns"), ("dpa.pool=all", "dpa")]
    )
    def test_other_pools(self, strict, call, tmp_path, flag, plugin) -> None:
        flags = [f"--config.diffusion_from={strict.path}", f"--config.{flag}"]
        done = call(tmp_path, *flags, f"--config.encoder.variants={plugin}")
        assert done.status == 0, done.err
        assert done.results["models"][0]["sampled"] == strict.results["models"][0]["sampled"]
        ours, theirs = done.results["plugins"], strict.results["plugins"]
        assert {name for name in ours if ours[name] != theirs[name]} == {plugin}

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            (
                "protocol=reference",
                "was trained with another protocol (strict), expected reference",
            ),
            ("simulation.seed=5", "was trained with another split ("),
            ("diffusion.hidden=(8,)", "has diffusion.hidden ("),
            ("diffusion.w_min=0.4", "has diffusion.w_min 0.5, expected 0.4"),
        ],
    )
    def test_that_was_trained_for_something_else(
        self, strict, call, tmp_path, flag, message
    ) -> None:
        done = call(
            tmp_path / "run",
            DIFFUSION,
            f"--config.diffusion_from={strict.path}",
            f"--config.{flag}",
        )
        assert done.status == 2
        assert f"config.diffusion_from: the model in {strict.path} {message}" in done.err
        assert "Traceback" not in done.err

    def test_that_was_trained_without_times(self, call, tmp_path) -> None:
        """Weighed by position it is T-DiffRec, though its config says the same."""
        rows = [f"{u},{u + i},{i}\n" for u in range(40) for i in range(30)]
        (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
        log = (f"--config.data.target={tmp_path / 'log.csv'}", "--config.dpa.coarse=5",
               "--config.dpa.fine=2", "--config.evaluation.negatives=5")  # fmt: skip
        source = call(tmp_path / "source", DIFFUSION, *log, "--config.data.time=")
        assert source.status == 0, source.err
        for taken in (
            (DIFFUSION, f"--config.diffusion_from={source.path}"),
            (ENCODER, f"--config.preferences_from={source.path}"),
        ):
            done = call(tmp_path / "run", *log, *taken)
            assert done.status == 2
            assert "with another weighting (position), expected time " in done.err

    def test_both_models_where_there_is_one(self, strict, call, tmp_path) -> None:
        flags = (DIFFUSION, "--config.diffusion.both", f"--config.diffusion_from={strict.path}")
        done = call(tmp_path / "run", *flags)
        assert done.status == 2
        assert "diffusion-position: no trained model is there" in done.err
        assert not (tmp_path / "run").exists()

    def test_saved_before_models_named_the_run_that_trained_them(
        self, strict, call, tmp_path, monkeypatch
    ) -> None:
        restore = Store.restore

        def restored(store, *given):
            state, meta = restore(store, *given)
            if strict.path in store.directory.parents:
                del meta["origin"]
            return state, meta

        monkeypatch.setattr(Store, "restore", restored)
        done = call(tmp_path / "run", DIFFUSION, f"--config.diffusion_from={strict.path}")
        assert (done.status, "TI-DiffRec: from" in done.err) == (0, True)

    def test_that_is_not_there(self, call, tmp_path) -> None:
        done = call(tmp_path / "run", f"--config.diffusion_from={tmp_path}")
        assert done.status == 2
        assert f"error: {tmp_path}: the workdir of a run is expected" in done.err

    def test_the_encoder_stage_reads_preferences(self, strict, call, tmp_path) -> None:
        done = call(tmp_path / "run", ENCODER, f"--config.diffusion_from={strict.path}")
        assert done.status == 2
        assert "name them with config.preferences_from" in done.err


def test_an_encoder_without_plugins_needs_no_preferences(strict, call, tmp_path) -> None:
    done = call(tmp_path, ENCODER, "--config.encoder.variants=base")
    assert done.results["models"] == strict.results["models"][1:2]
    assert done.results["plugins"] == {}
