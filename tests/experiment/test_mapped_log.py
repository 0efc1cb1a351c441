"""A whole job on a mapped log leaves what the same job leaves on the log in memory, bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.data import interactions, scratch
from pdrec_jax.data.columns import Columns
from pdrec_jax.data.simulator import simulate
from pdrec_jax.prepare.own import Rules, prepare
from pdrec_jax.recommend.__main__ import main as recommend

FLAGS = (
    "--config.diffusion.epochs=2",
    "--config.encoder.epochs=2",
    "--config.encoder.first_evaluation=1",
    "--config.encoder.batch_size=32",
    "--config.encoder.max_length=16",
    "--config.diffusion.hidden=(16,)",
    "--config.dpa.coarse=10",
    "--config.dpa.fine=2",
    "--config.nns.kept=16",
    "--config.evaluation.negatives=20",
    "--config.name=tiny",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """The same log, prepared to be read and to be mapped."""
    folder = tmp_path_factory.mktemp("mapped")
    log = simulate(90, 300, seed=4, mean_length=7).log
    events = zip(log.user_ids[log.event_users], log.item_ids[log.items], log.times, strict=True)
    lines = "".join(f"{user},{item},{time:.0f}\n" for user, item, time in events)
    (folder / "log.csv").write_text("user,item,time\n" + lines)
    made = folder / "in_memory", folder / "mapped"
    for place, mapped in zip(made, (False, True), strict=True):
        prepare([folder / "log.csv"], Columns("user", "item", "time"), place, Rules(mapped=mapped))
    return made


def test_the_same_results_losses_and_ranks(places, folder, call, monkeypatch) -> None:
    monkeypatch.setattr(interactions, "EVENTS_A_BLOCK", 101)
    monkeypatch.setattr(scratch, "EVENTS_A_BLOCK", 101)
    monkeypatch.setattr(scratch.user_blocks, "__defaults__", (101,))
    windows = ("--config.diffusion.noise_fraction=0.25", "--config.diffusion.error_fraction=0.25")
    done = [
        call(folder / f"log-{place.name}", f"--config.data.path={place}", *FLAGS, *windows)
        for place in places
    ]
    for run in done:
        assert run.status == 0, run.err
    expected, found = done
    assert found.losses == expected.losses
    for name in ("models", "plugins", "groups"):
        assert found.results[name] == expected.results[name]
    with np.load(found.path / "per_user.npz") as own, np.load(expected.path / "per_user.npz") as of:
        assert sorted(own.files) == sorted(of.files)
        for name in of.files:
            np.testing.assert_array_equal(own[name], of[name], name)
    # The finished run is found again by its log, and recommends to its users.
    again = call(found.path, f"--config.data.path={places[1]}", *FLAGS, *windows)
    assert again.status == 0
    assert "finished" in again.out
    (folder / "ids.txt").write_text("3\n5\n")
    told = []
    for run in done:
        out = folder / f"{run.path.name}.csv"
        flags = [f"--users={folder / 'ids.txt'}", "--k=3", f"--out={out}"]
        assert recommend([f"--workdir={run.path}", *flags]) == 0
        told.append(out.read_text())
    assert told[0] == told[1]
    assert told[0].count("\n") == 7


def test_a_damaged_log_is_one_line(places, folder, call) -> None:
    path = places[1] / "log" / "items.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    done = call(folder / "damaged", f"--config.data.path={places[1]}", *FLAGS)
    path.write_bytes(whole)
    assert done.status == 2
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "items.npy has" in last
    assert not (folder / "damaged").exists()
