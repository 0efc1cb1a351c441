"""Jobs on two domains at once, and on a log that was prepared."""

from unittest.mock import Mock

import numpy as np
import pytest

from pdrec_jax import other_runs, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.columns import Columns
from pdrec_jax.data.sources import load
from pdrec_jax.errors import UserError
from pdrec_jax.inspect.explain import explain
from pdrec_jax.inspect.trained import open_run
from pdrec_jax.prepare.own import Rules, prepare
from pdrec_jax.recommend import __main__ as recommend
from pdrec_jax.workdir import saved_config


@pytest.fixture(scope="module")
def mixed(call, tmp_path_factory):
    """The whole job with the source domain's events trained on."""
    return call(
        tmp_path_factory.mktemp("mixed") / "run",
        "--config.data.mixed",
        "--config.data.learns_source=False",
        "--config.simulation.num_source_items=150",
        "--config.simulation.num_items=200",
        # Another width is another model: that of 300 items is remembered by its settings.
        "--config.encoder.width=4",
    )


class TestTwoDomains:
    def test_both_are_trained_on(self, mixed) -> None:
        assert mixed.status == 0, mixed.err
        assert mixed.results["data"]["items"] == 350
        # All of the users that are kept, of both domains, those that no model trains on too.
        log, _ = load(saved_config(mixed.path), None)
        kept = log.select(log.target_lengths >= 3)
        assert mixed.results["data"]["events"] == kept.num_events
        assert len(mixed.results["models"]) == 3

    def test_what_is_drawn_is_of_the_target(self, mixed) -> None:
        run = open_run(mixed.path)
        known, split = run.preferences, run.given.split
        assert split.train.items.max() > 200
        for pool in (known.candidates, known.negatives):
            assert pool[known.users].min() >= 1
            assert pool.max() <= 200
        assert (known.observed[split.train.items > 200] != 0).any()
        made = phases.encoder_training(run.given, "hbr+nns", known, mixed.path).task
        assert made.data.outside.num_items == 200
        assert made.model.num_learnt == 200
        weights = np.asarray(made.data.weights)
        assert not weights[split.train.items > 200].any()
        assert weights[split.train.items <= 200].any()

    def test_a_source_item_is_shown_as_one(self, mixed) -> None:
        run = open_run(mixed.path)
        train = run.given.split.train
        own = train.items[train.offsets[0] : train.offsets[1]]
        told = explain(run, str(train.user_ids[0]))
        marked = [event.item.endswith(" (source)") for event in told.events[: len(own)]]
        assert marked == (own > 200).tolist()

    def test_histories_whose_ids_both_domains_have_are_warned_of(
        self, mixed, tmp_path, capsys
    ) -> None:
        run = open_run(mixed.path)
        ids = run.given.split.train.item_ids
        shared = len({*ids[1:201]} & {*ids[201:]})
        (tmp_path / "new.csv").write_text(f"user_id,item_id\na,{ids[1]}\na,{ids[2]}\n")
        out = tmp_path / "recommended.csv"
        flags = [f"--workdir={mixed.path}", f"--histories={tmp_path / 'new.csv'}", f"--out={out}"]
        assert recommend.main(flags) == 0
        assert shared
        assert f"{shared} ids are used by both domains" in capsys.readouterr().err

    def test_preferences_of_both_catalogues_are_refused(self, mixed, monkeypatch) -> None:
        run = open_run(mixed.path)
        assert other_runs.read_preferences(run.given, mixed.path).users.any()
        store = Store(mixed.path)
        made = store.restore_meta("preferences")
        del made["rules"]["catalogue"]
        monkeypatch.setattr(Store, "restore_meta", lambda *_: made)
        with pytest.raises(UserError, match="made with another rules"):
            other_runs.read_preferences(run.given, mixed.path)

    def test_ranks_are_among_target_items(self, mixed) -> None:
        per_user = np.load(mixed.path / "per_user.npz", allow_pickle=False)
        places = [name for name in per_user.files if name.endswith("full_rank")]
        assert len(places) == 3
        for name in places:
            ranked = per_user[name][np.isfinite(per_user[name])]
            assert ranked.size > 100
            assert ranked.min() >= 0
            assert ranked.max() < 200

    @pytest.mark.parametrize(
        "flags",
        [
            ("--config.diffusion.noise_fraction=0.001",),
            ("--config.diffusion.noise_max=2", "--config.diffusion.noise_scale=1"),
        ],
    )
    def test_a_model_that_does_not_fit_is_found_before_the_run_begins(
        self, call, tmp_path, flags
    ) -> None:
        done = call(tmp_path / "run", *flags)
        assert done.status == 2
        assert done.err.startswith("error: config.diffusion.noise_")
        assert not (tmp_path / "run").exists()

    def test_stand_ins_for_times_are_no_times(self, call, tmp_path) -> None:
        rows = [f"{u},{u + i},{i}\n" for u in range(40) for i in range(30)]
        (tmp_path / "log.csv").write_text("user_id,item_id,order\n" + "".join(rows))
        flags = (f"--config.data.target={tmp_path / 'log.csv'}", "--config.data.time=order")
        flags += ("--config.diffusion.weighting=position", "--config.diffusion.both")
        done = call(tmp_path / "run", *flags)
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert done.err.startswith("error: config.diffusion.both: False is expected with data.time")
        assert not (tmp_path / "run").exists()

    def test_one_domain_is_not_enough(self, call, tmp_path) -> None:
        done = call(tmp_path / "run", "--config.data.mixed")
        assert done.status == 2
        assert done.err.startswith("error: config.data.mixed: a log of two domains is expected;")
        assert not (tmp_path / "run").exists()


class TestPrepared:
    def test_its_log_and_its_settings(self, call, tmp_path, monkeypatch) -> None:
        rows = [f"u{u},i{i},{i}\n" for u in range(5) for i in range(u, u + 30)]
        (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(rows))
        out = tmp_path / "mine"
        prepare([tmp_path / "log.csv"], Columns("user", "item", "time"), out, Rules())
        monkeypatch.setattr(phases, "diffusion_phase", Mock(side_effect=KeyboardInterrupt))
        done = call(tmp_path / "run", f"--config.data.path={out}")
        assert done.out == "real data | tiny | protocol strict | seed 0\n"  # the config's own name
        assert "data: 5 users, 34 items, 150 events\n" in done.err
        config = (tmp_path / "run" / "config.json").read_text()
        assert '"hidden": [\n      256\n    ]' in config
        # What was set by hand stays: one candidate more than there is room for.
        done = call(tmp_path / "other", f"--config.data.path={out}", "--config.dpa.coarse=34")
        assert done.err.startswith("error: config.dpa.coarse: 34 candidates are wanted")
