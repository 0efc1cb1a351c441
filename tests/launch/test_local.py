"""Several processes on one machine."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_dry_run_prints_each_process(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch(
        "local.sh", "--processes=3", "--devices=2", "--port=9", "--dry-run", "--", *job,
        PYTHON="/usr/bin/py thon", XLA_FLAGS="--xla_a=1",
    )  # fmt: skip
    assert done.status == 0
    assert done.commands == [
        [
            "env",
            "JAX_PLATFORMS=cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
            "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=2",
            "/usr/bin/py thon",
            "-m",
            "pdrec_jax.main",
            "--coordinator=localhost:9",
            "--num_processes=3",
            f"--process_id={process}",
            *job,
        ]
        for process in range(3)
    ]


def test_each_process_gets_a_gpu(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("local.sh", "--device=gpu", "--port=9", "--dry-run", "--", *job)
    assert [words[2] for words in done.commands] == [f"CUDA_VISIBLE_DEVICES={n}" for n in (0, 1)]


# A stand-in for Python: notes its arguments, then does as $DO says.
STUB = 'echo "$@" >>"$LOG"; for a in "$@"; do [[ $a == --process_id=* ]] && id=${a#*=}; done\n'


def test_processes_run_and_what_they_print_is_kept(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    log = stub("py", STUB + "echo out of $id")
    done = launch("local.sh", "--", "--config=a", f"--workdir={tmp_path}/w", PYTHON="py")
    # A free port was asked of the interpreter, which the stub answers in its own way.
    assert done.status == 2
    done = launch(
        "local.sh", "--port=9", "--", "--config=a", f"--workdir={tmp_path}/w", PYTHON="py"
    )
    assert (done.status, done.out, done.err) == (0, "out of 0\n", "")
    assert (tmp_path / "w-processes/process-1.log").read_text() == "out of 1\n"
    assert (
        "--coordinator=localhost:9 --num_processes=2 --process_id=1 --config=a" in log.read_text()
    )


def test_no_status_is_lost_where_several_end_together(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The last one holds the launcher until three have ended, one of them with an error."""
    stub(
        "py",
        STUB + "if ((id < 3)); then\n"
        f"  until [[ -e {tmp_path}/go ]]; do sleep 0.05; done; exit $((id == 1 ? 9 : 0))\n"
        f"fi; kill -STOP $PPID; touch {tmp_path}/go; sleep 0.5; kill -CONT $PPID\n"
        'trap "exit 143" TERM; sleep 2 >&- 2>&- & wait',
    )
    done = launch(
        "local.sh", "--port=9", "--processes=4", "--", "--config=a", f"--workdir={tmp_path}/w",
        PYTHON="py",
    )  # fmt: skip
    assert done.status == 9


def test_a_failure_ends_the_others(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    log = stub(
        "py",
        STUB + "if ((id == 1)); then sleep 0.3; exit 7; fi\n"
        'trap "echo told $id >>$LOG; exit 143" TERM; sleep 9 >&- 2>&- & wait',
    )
    started = time.monotonic()
    done = launch(
        "local.sh", "--port=9", "--processes=3", "--", "--config=a", f"--workdir={tmp_path}/w",
        PYTHON="py",
    )  # fmt: skip
    assert done.status == 7
    assert time.monotonic() - started < 10
    assert done.err == (
        f"a process ended with status 7; the others' output is in {tmp_path}/w-processes\n"
    )
    assert sorted(line for line in log.read_text().splitlines() if "told" in line) == [
        "told 0",
        "told 2",
    ]


def test_what_does_not_hear_is_ended_after_the_grace(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """As a process that waits in a collective for one that is lost."""
    log = stub(
        "py",
        STUB + 'if ((id == 1)); then sleep 0.3; exit 7; fi\ntrap "" TERM; exec sleep 20 >&- 2>&-',
    )
    started = time.monotonic()
    done = launch(
        "local.sh", "--port=9", "--grace=1", "--", "--config=a", f"--workdir={tmp_path}/w",
        PYTHON="py",
    )  # fmt: skip
    assert done.status == 7
    assert 1 < time.monotonic() - started < 10
    assert len(log.read_text().splitlines()) == 2


def test_a_signal_reaches_every_process(stub: Callable[[str, str], Path], tmp_path: Path) -> None:
    log = stub("py", STUB + 'trap "echo saved $id >>$LOG; exit 143" TERM; sleep 9 >&- 2>&- & wait')
    command = [ROOT / "launch/local.sh", "--port=9", "--", "--config=a", f"--workdir={tmp_path}/w"]
    environment = {**os.environ, "PYTHON": str(tmp_path / "bin/py")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while not log.exists() or log.read_text().count("--config=a") < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # the stubs set their traps after they have noted themselves
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
    assert sorted(line for line in log.read_text().splitlines() if "saved" in line) == [
        "saved 0",
        "saved 1",
    ]
