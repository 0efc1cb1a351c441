"""Slurm: what sbatch gets, and what the batch script makes of Slurm's variables."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Long options of sbatch that a launcher may use, and the form of their values (man sbatch).
NUMBER, NAME = r"[1-9]\d*", r"[A-Za-z0-9_.-]+"
SBATCH = {
    "--job-name": NAME,
    "--nodes": rf"{NUMBER}(-{NUMBER})?",
    "--ntasks-per-node": NUMBER,
    "--time": r"(\d+-)?\d+(:\d+){0,2}",
    "--requeue": None,
    "--open-mode": "append|truncate",
    "--output": r"/.*%j.*",
    "--signal": rf"([RB]:)?[A-Z0-9]+@{NUMBER}",
    "--export": "ALL|NONE",
    "--gpus-per-node": rf"([a-z0-9]+:)?{NUMBER}",
    "--cpus-per-task": NUMBER,
    "--partition": NAME,
    "--account": NAME,
    "--chdir": "/.*",
}


def sbatch(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables that `env` sets, and the command."""
    assert words[0] == "env"
    begin = words.index("sbatch")
    return dict(word.split("=", 1) for word in words[1:begin]), words[begin:]


def parse(line: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Reads a command line as sbatch does: options, then a script and what it gets."""
    _, words = sbatch(line)
    options: dict[str, str | None] = {}
    for place, word in enumerate(words[1:], 1):
        if not word.startswith("-"):
            return options, words[place:]
        name, equals, value = word.partition("=")
        form = SBATCH[name]
        assert (form is not None) == bool(equals), word
        assert form is None or re.fullmatch(form, value), word
        options[name] = value or None
    raise AssertionError("no script")


ARGUMENTS = [
    [],
    ["--nodes=4", "--gpus=8", "--time=2-12", "--partition=gpu", "--account=lab", "--cpus=12"],
    ["--nodes=2", "--gpus=8", "--tasks=8", "--time=90", "--name=a-1", "--port=999"],
]
# Of a cluster whose controller nobody answers for: sbatch reads its options, and submits nothing.
NOWHERE = """ClusterName=nowhere
SlurmctldHost=localhost
SlurmctldPort=9
AuthType=auth/none
GresTypes=gpu
MessageTimeout=2
NodeName=localhost
PartitionName=gpu Nodes=ALL
"""


@pytest.mark.skipif(not shutil.which("sbatch"), reason="sbatch is not installed")
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_real_sbatch_reads_it(
    arguments: list[str], launch: Callable[..., Any], job: tuple[str, ...], tmp_path: Path
) -> None:
    (line,) = launch("slurm.sh", *arguments, "--dry-run", "--", *job).commands
    _, words = sbatch(line)
    conf = tmp_path / "slurm.conf"
    conf.write_text(NOWHERE)
    path = {"PATH": os.environ["PATH"], "SLURM_CONF": str(conf)}

    def read(*options: str) -> str:
        done = subprocess.run(
            ["sbatch", "--test-only", *options, *words[1:]],
            env=path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode
        return done.stderr

    assert "connect failure" in read()
    assert "Invalid --signal specification" in read("--signal=TERM@99999999")
    assert "unrecognized option" in read("--such=1")
    assert "Invalid --time specification" in read("--time=soon")


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_sbatch_accepts_it(
    arguments: list[str], launch: Callable[..., Any], job: tuple[str, ...], tmp_path: Path
) -> None:
    done = launch("slurm.sh", *arguments, "--dry-run", "--", *job)
    assert (done.status, done.err) == (0, "")
    (words,) = done.commands
    options, (script, *given) = parse(words)
    assert Path(script) == ROOT / "launch/job.sbatch"
    assert Path(script).read_text().startswith("#!")
    assert given == [f"--config={tmp_path}/configs/toy.py", *job[1:]]
    assert options["--chdir"] == str(ROOT)
    assert {"--requeue", "--signal", "--open-mode"} <= options.keys()


def test_processors_are_a_number(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("slurm.sh", "--cpus=many", "--dry-run", "--", *job)
    assert done.status
    assert "--cpus" in done.err


def test_defaults_come_from_the_environment(
    launch: Callable[..., Any], job: tuple[str, ...]
) -> None:
    done = launch("slurm.sh", "--dry-run", "--", *job, PDREC_NODES="3", PDREC_PARTITION="p")
    options, _ = parse(done.commands[0])
    assert (options["--nodes"], options["--partition"]) == ("3", "p")
    assert "--gpus-per-node" not in options


def test_paths_count_from_where_it_is_submitted(launch: Callable[..., Any], tmp_path: Path) -> None:
    job = ("--config=a b.py:readme", "--workdir=runs/x", "--config.data.path=data/shop")
    done = launch("slurm.sh", "--dry-run", "--", *job, PYTHON="env/bin/python")
    options, (_, *given) = parse(done.commands[0])
    assert given == [f"--config={tmp_path}/a b.py:readme", f"--workdir={tmp_path}/runs/x", job[2]]
    assert options["--output"] == f"{tmp_path}/pdrec-%j.log"
    assert sbatch(done.commands[0])[0]["PYTHON"] == f"{tmp_path}/env/bin/python"
    absolute = ("--config=/c.py", "--workdir=/w")
    done = launch("slurm.sh", "--dry-run", "--", *absolute, PYTHON="python3")
    assert parse(done.commands[0])[1][1:] == list(absolute)
    assert sbatch(done.commands[0])[0]["PYTHON"] == "python3"


def test_variables_reach_the_job_whatever_they_hold(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], job: tuple[str, ...]
) -> None:
    log = stub("sbatch", 'echo "$PYTHON $PDREC_PORT" >>"$LOG"')
    done = launch("slurm.sh", "--port=99", "--", *job, PYTHON="/a,b=c/python")
    assert (done.status, done.err) == (0, "")
    assert log.read_text() == "/a,b=c/python 99\n"


@pytest.mark.parametrize("limit", ["0", "0-0:00", "1:60", "99:99:99", "1-2:3:4:5"])
def test_a_time_that_is_none(limit: str, launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("slurm.sh", f"--time={limit}", "--dry-run", "--", *job)
    assert done.status == 2
    assert done.err.startswith("error: --time: ")


SCONTROL = 'echo "$@" >>"$LOG"; [[ $1 == show ]] && printf "node7\\nnode8\\n"; exit 0'
# Runs each task in turn, as srun would side by side.
SRUN = """[[ $1 == --kill-on-bad-exit=1 ]] || exit 9
shift
for ((id = 0; id < SLURM_NTASKS; id++)); do
  SLURM_PROCID=$id SLURM_LOCALID=$((id % SLURM_NTASKS_PER_NODE)) "$@" || exit
done"""
PYTHON = """printf '%s|' "${CUDA_VISIBLE_DEVICES:-all}" "$@" >>"$LOG"
echo >>"$LOG"; exit "${END:-0}\""""


def run_batch(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "launch/job.sbatch", "--config=a b", "--workdir=/w"],
        env={
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "SLURM_JOB_ID": "5000",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "4",
            "SLURM_NTASKS_PER_NODE": "2",
            "PYTHON": "py",
            **variables,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_tasks_get_their_place_and_their_gpus(
    stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    stub("scontrol", SCONTROL)
    stub("srun", SRUN)
    log = stub("py", PYTHON)
    done = run_batch(tmp_path, SLURM_GPUS_ON_NODE="8")
    assert (done.returncode, done.stderr) == (0, "")
    lines = log.read_text().splitlines()
    port = 61440 + 5000 % 4096
    for process, line in enumerate(lines):
        gpus, *words = line.split("|")[:-1]
        assert gpus == ("0,1,2,3", "4,5,6,7")[process % 2]
        assert words == [
            "-m",
            "pdrec_jax.main",
            f"--coordinator=node7:{port}",
            "--num_processes=4",
            f"--process_id={process}",
            "--config=a b",
            "--workdir=/w",
        ]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("granted", "dealt"),
    [
        ("4,5,6,7", ["4,5", "6,7"]),  # of a node that another job has a part of
        ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
        ("0,1", ["0,1", "0,1"]),  # by Slurm itself
    ],
)
def test_gpus_are_those_that_were_granted(
    granted: str, dealt: list[str], stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    stub("scontrol", SCONTROL)
    stub("srun", SRUN)
    log = stub("py", PYTHON)
    done = run_batch(tmp_path, SLURM_GPUS_ON_NODE="4", CUDA_VISIBLE_DEVICES=granted)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("|")[0] for line in log.read_text().splitlines()] == dealt * 2


@pytest.mark.parametrize(("end", "requeued"), [("0", False), ("1", False), ("143", True)])
def test_a_job_that_is_told_to_end_goes_back_to_the_queue(
    end: str, requeued: bool, stub: Callable[[str, str], Path], tmp_path: Path
) -> None:
    log = stub("scontrol", SCONTROL)
    stub("srun", SRUN)
    stub("py", PYTHON)
    done = run_batch(tmp_path, END=end)
    assert done.returncode == int(end)
    assert ("requeue 5000" in log.read_text().splitlines()) == requeued
