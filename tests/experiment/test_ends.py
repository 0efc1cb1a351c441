"""Runs that end badly: killed anywhere, on a full disk, on a checkpoint of another shape.

The same command goes on afterwards, and comes to what an unbroken run comes to.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from pdrec_jax import experiment, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.diffusion.stage import DiffusionTask
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.phase_records import PhaseRecords
from pdrec_jax.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["diffusion", "sasrec", "sasrec+hbr+nns+dpa"]
DIFFUSION, SAVE = "--config.stage=diffusion", "--config.save_seconds=0"
ENCODER = "--config.stage=encoder"


def die(*_: Any) -> None:
    raise KeyboardInterrupt


def flip(slot: Path) -> None:
    """Changes a bit of the largest file of a slot of checkpoints."""
    largest = max(slot.glob("*/tree/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def said(done: Any) -> str:
    """The warnings of a call."""
    return "\n".join(line for line in done.err.splitlines() if line.startswith("warning: "))


def killed_in(call: Any, monkeypatch: Any, stage: str, workdir: Path, *flags: str) -> Any:
    """A call that ends after the second epoch of a stage."""
    write = MetricLog.write

    def write_and_die(log: MetricLog, name: str, epoch: int, **values: Any) -> None:
        write(log, name, epoch, **values)
        if (name, epoch) == (stage, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "write", write_and_die)
        return call(workdir, *flags)


def assert_same_diffusion(done: Any, strict: Any) -> None:
    """A run of the diffusion stage alone came to what the unbroken run of all has."""
    assert done.status == 0
    assert done.results["models"] == strict.results["models"][:1]
    assert done.results["plugins"] == strict.results["plugins"]
    assert done.losses == [line for line in strict.losses if line["stage"] == KEYS[0]]
    assert done.half_written == []


class TestKilled:
    @pytest.mark.parametrize(("stage", "flags"), [(KEYS[0], []), (KEYS[1], []), (KEYS[2], [SAVE])])
    def test_in_an_epoch(self, strict, call, tmp_path, monkeypatch, stage, flags) -> None:
        killed = killed_in(call, monkeypatch, stage, tmp_path, *flags)
        assert killed.status == 130
        assert killed.err.endswith("interrupted; the same command resumes the run\n")
        assert killed.results == {}
        assert len(list(tmp_path.rglob("state"))) == len(flags)
        done = call(tmp_path)
        assert done.status == 0
        assert done.lasting == strict.lasting
        assert done.losses == strict.losses
        assert done.half_written == []

    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (phases, "save_preferences"),
            (PhaseRecords, "finish"),
            (Workdir, "save_per_user"),
            (experiment, "write_report"),
            (Workdir, "finish"),
        ],
    )
    def test_between_epochs(self, strict, call, tmp_path, monkeypatch, place, name) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, die)
            assert call(tmp_path, DIFFUSION).status == 130
        done = call(tmp_path, DIFFUSION)
        assert_same_diffusion(done, strict)
        assert (tmp_path / "report.md").is_file()

    def test_by_the_system(self, strict, call, folder, tmp_path, hurry) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PDREC_DATA"}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": " ".join(f"--{name}={value.lower()}" for name, value in hurry.items()),
        }
        flags = ["--config=config.py", f"--workdir={tmp_path}", SAVE]
        process = subprocess.Popen(
            [sys.executable, "-m", "pdrec_jax.main", *flags],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        log, end = tmp_path / "metrics.jsonl", time.monotonic() + 300
        try:
            while not (log.is_file() and log.read_text().count("\n") >= 2):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "results.json").exists()
        assert_same_diffusion(call(tmp_path, DIFFUSION), strict)


def test_damaged_files_of_phases_that_are_done(strict, call, tmp_path) -> None:
    """What is left of a finished run is used, the rest is made anew, and told of."""
    place = tmp_path / "run"
    shutil.copytree(strict.path, place)
    for name in ("results.json", f"phases/{KEYS[2]}.json", "encoders/sasrec+hbr+nns+dpa"):
        shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    for path in (*place.glob("preferences/*/tree/_METADATA"), place / "phases/preferences.json"):
        path.write_bytes(path.read_bytes()[:-9])
    for path in place.glob("diffusion/best/*/tree/d/*"):
        path.unlink()
    done = call(place)
    assert done.status == 0
    assert done.lasting == strict.lasting
    assert sorted(map(str, done.losses)) == sorted(map(str, strict.losses))
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert [re.sub(r".*(counts as |; (the )?)", "", line) for line in warnings] == [
        "diffusion is trained anew",
        "not done",
        "diffusion is trained anew",
    ]
    assert done.half_written == []


@pytest.mark.parametrize("name", ["encoders/sasrec/best", "preferences"])
def test_what_was_damaged_since_the_run_finished(strict, call, tmp_path, name) -> None:
    place = tmp_path / "run"
    shutil.copytree(strict.path, place)
    flip(place / name)
    done = call(place)
    assert done.status == 0
    assert done.lasting == strict.lasting
    key = name.removeprefix("encoders/").removesuffix("/best")
    assert re.search(rf"warning: .*{name}: .* is broken .*{key} (is|are) \w+ anew\n", done.err)
    again = call(place)
    assert (again.status, again.err) == (0, "")
    assert "finished, these are its results" in again.out


def test_damaged_preferences_in_the_encoder_stage_alone(strict, call, tmp_path) -> None:
    """They are computed anew by the model that is there; else nothing of the kind is promised."""
    place = Path(shutil.copytree(strict.path, tmp_path / "run"))
    flip(place / "preferences")
    bare = Path(shutil.copytree(place, tmp_path / "bare"))
    done = call(place, ENCODER)
    assert done.status == 0, done.err
    assert re.fullmatch("warning: .* is broken .*; the preferences are computed anew", said(done))
    assert done.lasting == strict.lasting
    assert sorted(map(str, done.losses)) == sorted(map(str, strict.losses))
    assert call(place, ENCODER).err == ""
    (bare / "phases/diffusion.json").unlink()
    refused = call(bare, ENCODER)
    assert refused.status == 2
    assert said(refused).endswith("the encoder stage alone cannot compute the preferences anew")
    assert "error: config.stage: the encoder stage alone needs preferences" in refused.err
    assert refused.results == strict.results


@pytest.mark.parametrize("name", ["diffusion.json", "sasrec.npz", "preferences.json"])
def test_a_record_that_was_damaged_since_the_run_finished(strict, call, tmp_path, name) -> None:
    """It is written anew, without any training: the model and the preferences are whole."""
    place = Path(shutil.copytree(strict.path, tmp_path / "run"))
    damaged = place / "phases" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = call(place)
    key = damaged.stem
    assert done.status == 0
    assert re.fullmatch(rf"warning: .*phases/{key}\.json: .*; {key} counts as not done", said(done))
    assert done.lasting == strict.lasting
    assert done.losses == strict.losses
    again = call(place)
    assert (again.status, again.err) == (0, "")
    assert "finished, these are its results" in again.out


@pytest.mark.parametrize(
    ("key", "name"), [("diffusion", "diffusion"), ("sasrec", "encoders/sasrec")]
)
def test_killed_while_it_mends(strict, call, tmp_path, monkeypatch, key, name) -> None:
    """The model that is gone by then is trained to its end, and not taken for one not missed."""
    place = tmp_path / "run"
    shutil.copytree(strict.path, place)
    flip(place / name / "best")
    killed = killed_in(call, monkeypatch, key, place, SAVE)
    assert killed.status == 130
    assert [path.name for path in (place / name).iterdir()] == ["state"]
    assert killed.results == {}
    done = call(place)
    assert (done.status, done.err.count("warning: ")) == (0, 0)
    assert done.lasting == strict.lasting
    assert sorted(map(str, done.losses)) == sorted(map(str, strict.losses))
    assert [path.name for path in (place / name).iterdir()] == ["best"]


def test_checkpoints_that_were_removed_to_make_room_are_not_missed(strict, call, tmp_path) -> None:
    place = tmp_path / "run"
    shutil.copytree(strict.path, place)
    for name in ("encoders", "diffusion", "preferences"):
        shutil.rmtree(place / name)
    done = call(place)
    assert (done.status, done.err) == (0, "")
    assert "finished, these are its results" in done.out


def test_a_loss_that_is_not_finite(call, tmp_path, monkeypatch) -> None:
    """The second epoch starts from parameters that are none; the first is saved."""
    run_epoch = DiffusionTask.run_epoch

    def spoiled(task: Any, state: Any, epoch: int, *rest: Any) -> Any:
        if epoch == 2:
            state = {
                **state,
                "params": jax.tree.map(lambda a: a * np.float32("nan"), state["params"]),
            }
        return run_epoch(task, state, epoch, *rest)

    monkeypatch.setattr(DiffusionTask, "run_epoch", spoiled)
    done = call(tmp_path, DIFFUSION, SAVE)
    assert done.status == 2
    assert done.err.splitlines()[-1] == (
        "error: diffusion: the loss is nan in step 1 of epoch 2 at learning rate 0.00099; the last "
        f"good state is that of epoch 1 in {tmp_path}/diffusion/state. A smaller learning rate in "
        "another workdir usually helps"
    )
    assert "Traceback" not in done.err
    assert [line["epoch"] for line in done.losses] == [1]


def test_damaged_preferences(strict, call, tmp_path) -> None:
    place = tmp_path / "run"
    shutil.copytree(strict.path, place)
    (place / "results.json").unlink()
    for path in place.glob("preferences/*/manifest.json"):
        path.write_text("{}")
    done = call(place)
    assert done.lasting == strict.lasting
    (warning,) = (line for line in done.err.splitlines() if line.startswith("warning: "))
    assert warning.endswith("; the preferences are computed anew")


def test_a_checkpoint_of_another_shape(call, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(phases, "diffusion_phase", die)
        assert call(tmp_path).status == 130
    Store(tmp_path / "diffusion").save("best", 1, {"item_kernel": np.zeros((3, 2))}, {})
    done = call(tmp_path)
    before = done.stamps
    assert done.status == 2
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'diffusion' / 'best'}: checkpoint of another model")
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    assert done.stamps == before
    assert done.half_written == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A file system of 4 MB, with `fill()` and `free()`; skipped where none may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system cannot be mounted here")

    def fill() -> None:
        with contextlib.suppress(OSError), (path / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    try:
        yield SimpleNamespace(path=path / "run", fill=fill, free=(path / "filler").unlink)
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        (Workdir, "begin", r"run(/config\.json)?: cannot write, disk full"),
        (MetricLog, "write", r"metrics\.jsonl: cannot write, disk full"),
        (Store, "save", r"diffusion/state: disk full while saving step 2; free some space and run"),
        (PhaseRecords, "finish", r"phases/diffusion\.npz: cannot write, disk full"),
        (Workdir, "save_per_user", r"per_user\.npz: cannot write, disk full"),
        (Workdir, "finish", r"results\.json: cannot write, disk full"),
    ],
)
def test_a_full_disk(strict, call, disk, monkeypatch, place, name, message) -> None:
    function = getattr(place, name)

    def filled(*arguments: Any, **named: Any) -> Any:
        disk.fill()
        return function(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, filled)
        done = call(disk.path, DIFFUSION, SAVE)
    assert done.status == 2
    assert re.search(f"^error: .*{message}", done.err.splitlines()[-1])
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    assert done.results == {}
    assert done.half_written == []
    disk.free()
    assert_same_diffusion(call(disk.path, DIFFUSION), strict)
