"""What holds for every launcher: it parses, explains itself, and answers mistakes in one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(p for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))
LAUNCHERS = ("local.sh", "slurm.sh", "tpu.sh", "kubernetes.sh")


def test_every_script_is_bash() -> None:
    assert {p.name for p in SCRIPTS} == {*LAUNCHERS, "common.sh", "job.sbatch"}
    for script in SCRIPTS:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    tool = Path(sys.executable).with_name("shellcheck")
    if not tool.exists():
        pytest.skip("shellcheck comes with the extra dev")
    done = subprocess.run(
        [tool, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == ""


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_names_every_option_with_its_variable(name: str, launch: Callable[..., Any]) -> None:
    done = launch(name, "--help")
    assert done.status == 0
    text = (ROOT / "launch" / name).read_text()
    options = {line.split("=")[0].strip(" |)") for line in text.splitlines() if "value_of" in line}
    assert options
    assert [option for option in options if option not in done.out] == []
    variables = {part.split("}")[0].split(":")[0] for part in text.split("${PDREC_")[1:]}
    assert [one for one in variables if f"PDREC_{one}" not in done.out] == []


MISTAKES = [
    (
        "local.sh",
        ["--processes=0"],
        "--processes: a number from 1 to 999999999 is expected, got '0'",
    ),
    ("local.sh", ["--device=tpu", "--port=1"], "--device: cpu or gpu is expected, got 'tpu'"),
    ("local.sh", ["--device=gpu", "--devices=4"], "--devices: for --device=cpu, a process has one"),
    ("local.sh", ["--port=65536"], "--port: a number from 1 to 65535 is expected, got '65536'"),
    ("local.sh", ["--grace=99999999999999999999"], "--grace: a number from 1 to 999999999 is"),
    ("slurm.sh", ["--port=70000"], "--port: a number from 1 to 65535 is expected, got '70000'"),
    ("local.sh", ["--whatever"], "unknown option --whatever; --help lists them"),
    ("local.sh", ["--port="], "--port=: a value is expected, as in --port=VALUE"),
    ("slurm.sh", ["--time=tomorrow"], "--time: minutes, hours:minutes:seconds or days-hours"),
    ("slurm.sh", ["--gpus=8", "--tasks=3"], "--tasks: a divisor of the 8 GPUs a node is expected"),
    ("slurm.sh", ["--notice=70000"], "--notice: a number from 1 to 65535"),
    ("tpu.sh", ["run"], "--zone: a zone with TPUs is expected"),
    (
        "tpu.sh",
        ["create", "--zone=z", "--type=v5e-16"],
        "--type: v4-N, v5litepod-N, v5p-N or v6e-N",
    ),
    ("tpu.sh", ["fly"], "create, setup, run, logs, status, stop, delete or keep is expected"),
    ("kubernetes.sh", ["apply"], "--device: gpu or tpu is expected, got ''"),
    (
        "kubernetes.sh",
        ["apply", "--device=tpu", "--topology=4by4"],
        "--topology: AxB or AxBxC is expected, for instance 4x4, got '4by4'",
    ),
    (
        "kubernetes.sh",
        ["apply", "--device=tpu", "--topology=2x3"],
        "--devices: a divisor of 6 chips is expected, got 4",
    ),
    ("kubernetes.sh", ["apply", "--device=gpu"], "--image: an image is expected, got ''"),
    ("kubernetes.sh", ["apply", "--name=Pdrec"], "--name: up to 40 lower-case letters"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line(
    name: str, arguments: list[str], message: str, launch: Callable[..., Any], job: tuple[str, ...]
) -> None:
    done = launch(name, *arguments, "--dry-run", "--", *job)
    assert done.status == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE among them"),
        (["--config=a"], "--workdir=DIR is expected, a directory that all processes share"),
        (["--config=a", "--workdir=b", "--process_id=1"], "--process_id: the launcher sets it"),
    ],
)
def test_a_job_needs_config_and_workdir(
    arguments: list[str], message: str, launch: Callable[..., Any]
) -> None:
    done = launch("local.sh", "--port=1", "--dry-run", "--", *arguments)
    assert done.status == 2
    assert message in done.err
