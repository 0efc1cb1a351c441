"""A job in processes of its own, ended by signals anywhere, comes to what an unbroken one does."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 25
# Runs the command line; kills itself at the n-th time that it opens, makes, renames or removes
# something in the workdir, where n is not 0; leaves their number otherwise.
CHILD = """
import os, signal, sys
from pathlib import Path
limit, count, workdir = int(sys.argv[1]), 0, sys.argv[2]
events = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
def look(event, arguments):
    global count
    if event in events and str(arguments[0]).startswith(workdir):
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
from pdrec_jax.main import main
status = main(["main", "--config=config.py", f"--workdir={workdir}", *sys.argv[3:]])
print(count)
sys.exit(status)
"""
Start = Callable[..., subprocess.Popen]


@pytest.fixture(scope="session")
def start(folder: Path, hurry: dict[str, str]) -> Start:
    """`start(workdir, *flags, at=0)` starts the command line in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PDREC_DATA"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join(f"--{name}={value.lower()}" for name, value in hurry.items()),
    }

    def start(workdir: Path, *flags: str, at: int = 0) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(at), str(workdir), *flags],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def lines_of(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def wait_for(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_signal_saves_the_state_and_the_same_command_goes_on(
    strict: Any, call: Callable[..., Any], start: Start, tmp_path: Path
) -> None:
    """SIGTERM amid training; while it trains, a second run in its workdir is refused."""
    process = start(tmp_path, "--config.stage=diffusion", "--config.diffusion.epochs=300")
    try:
        wait_for(process, lambda: lines_of(tmp_path) >= 3)
        refused = call(tmp_path, "--config.stage=diffusion", "--config.diffusion.epochs=300")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert refused.status == 2
    assert re.fullmatch(
        rf"error: {re.escape(str(tmp_path))}: another run is at work in it \(process "
        rf"{process.pid} on \S+\); wait for it, end it, or choose another directory\n",
        refused.err,
    )
    assert process.returncode == 128 + signal.SIGTERM
    said, last = err.splitlines()[-2:]
    assert said == "SIGTERM: the state will be saved first; a second signal ends it at once"
    assert re.fullmatch(
        r"interrupted: diffusion is saved after epoch \d+; the same command resumes the run", last
    )
    assert "Traceback" not in err
    epochs = lines_of(tmp_path)
    assert f"after epoch {epochs};" in last
    assert [path.name for path in (tmp_path / "diffusion").iterdir()] == ["state"]
    assert not (tmp_path / ".lock").exists()


def lasting(workdir: Path) -> str:
    """results.json byte for byte, apart from times and memory."""
    results = json.loads((workdir / "results.json").read_text())
    for mood in ("times", "peak_memory_bytes"):
        del results[mood]
    return json.dumps(results, indent=2)


@pytest.mark.slow
@pytest.mark.parametrize("behind", ["off", "on"])
def test_random_kills(start: Start, tmp_path: Path, behind: str) -> None:
    """SIGKILL 25 times, half of them at any moment, half at any touch of a file."""
    flags = ["--config.save_seconds=0", f"--config.save_async={behind}"]
    begun = time.monotonic()
    unbroken = start(tmp_path / "unbroken", *flags)
    out, err = unbroken.communicate()
    assert unbroken.returncode == 0, err
    seconds, touches = time.monotonic() - begun, int(out.split()[-1])
    draw, kills, jobs, where = random.Random(0), 0, 0, []
    while True:
        workdir = tmp_path / f"killed-{jobs}"
        at = draw.randrange(1, touches) if kills < KILLS and draw.random() < 0.5 else 0
        process = start(workdir, *flags, at=at)
        if at or kills == KILLS:
            _, err = process.communicate()
        else:
            try:
                _, err = process.communicate(timeout=draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                _, err = process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            where.append(f"{jobs}: {lines_of(workdir)} epochs" + f", touch {at}" * bool(at))
            continue
        assert process.returncode == 0, err
        assert lasting(workdir) == lasting(tmp_path / "unbroken")
        jobs += 1
        if kills == KILLS:
            break
    print(f"{kills} kills in {jobs} jobs of {seconds:.0f} s:", *where, sep="\n  ")
