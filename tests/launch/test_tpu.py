"""TPU pods: every command against gcloud's grammar, and the loop on a stub of gcloud."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
ZONE = {"--zone": r"[a-z]+-[a-z]+\d-[a-z]", "--project": NAME}
TYPE = r"v4-\d+|v5litepod-\d+|v5p-\d+|v6e-\d+"
# gcloud compute tpus: for each command the positional arguments, flags and forms of their values
# that its reference lists, None for a flag without a value; flags that it requires.
GCLOUD: dict[str, tuple[int, dict[str, str | None], set[str]]] = {
    "queued-resources create": (
        1,
        {
            **ZONE,
            "--accelerator-type": TYPE,
            "--runtime-version": r"[a-z0-9-]+",
            "--node-id": NAME,
            "--spot": None,
        },
        {"--accelerator-type", "--runtime-version", "--node-id"},
    ),
    "queued-resources describe": (1, {**ZONE, "--format": r"value\(state\.state\)"}, set()),
    "queued-resources delete": (1, {**ZONE, "--force": None, "--quiet": None}, set()),
    "tpu-vm create": (
        1,
        {**ZONE, "--accelerator-type": TYPE, "--version": r"[a-z0-9-]+", "--spot": None},
        {"--version"},
    ),
    "tpu-vm describe": (1, {**ZONE, "--format": r"value\(state\)"}, set()),
    "tpu-vm delete": (1, {**ZONE, "--quiet": None}, set()),
    "tpu-vm ssh": (1, {**ZONE, "--worker": r"all|\d+", "--command": r"(?s).+"}, set()),
    "tpu-vm scp": (2, {**ZONE, "--worker": r"all|\d+"}, set()),
}


def read(words: list[str]) -> tuple[str, list[str], dict[str, str | None]]:
    """Reads a command as gcloud does."""
    assert words[:3] == ["gcloud", "compute", "tpus"]
    command = " ".join(words[3:5])
    count, flags, required = GCLOUD[command]
    positional, found = [], {}
    for word in words[5:]:
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        form = flags[name]
        assert (form is not None) == bool(equals), word
        assert form is None or re.fullmatch(form, value), word
        found[name] = value
    assert len(positional) == count
    assert required | {"--zone"} <= found.keys()
    return command, positional, found


def gcloud_commands(done: Any) -> list[tuple[str, list[str], dict[str, str | None]]]:
    assert (done.status, done.err) == (0, "")
    return [read(words) for words in done.commands if words[0] == "gcloud"]


ALL = ("create", "setup", "run", "logs", "status", "stop", "delete", "keep")


@pytest.mark.parametrize("extra", [[], ["--direct"], ["--spot", "--project=my-project"]])
@pytest.mark.parametrize("action", ALL)
def test_gcloud_accepts_it(
    action: str, extra: list[str], launch: Callable[..., Any], job: tuple[str, ...]
) -> None:
    done = launch(
        "tpu.sh",
        action,
        "--zone=us-west4-a",
        "--type=v5litepod-16",
        "--dry-run",
        *extra,
        "--",
        *job,
    )
    for _, _, flags in gcloud_commands(done):
        if command := flags.get("--command"):
            checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert (checked.returncode, checked.stderr) == (0, "")


# Google's metadata server, for the second of three hosts.
CURL = """[[ $* == "-sf --max-time 60 -H Metadata-Flavor:Google "* ]] || exit 9
case ${*: -1} in
  */worker-network-endpoints) echo -n a:b:10.0.0.7,a:b:10.0.0.8,a:b:10.0.0.9 ;;
  */agent-worker-number) echo -n 1 ;;
esac"""


@pytest.fixture
def host(
    launch: Callable[..., Any], stub: Callable[[str, str], Path], tmp_path: Path
) -> Callable[..., str]:
    """Does on this machine what a command of ``tpu.sh`` would have a host do."""
    stub("curl", CURL)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"

    def do(action: str, *job: str, python: str = "exit 0", then: str = "", **variables: str) -> str:
        done = launch(
            "tpu.sh", action, "--zone=us-west4-a", "--dry-run", "--", *job, **variables
        )  # fmt: skip
        flags = gcloud_commands(done)[-1][2]
        assert flags["--worker"] == "all"
        if action == "run":
            place = tmp_path / "pdrec/.venv/bin/python"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"#!/bin/sh\n{python}\n")
            place.chmod(0o755)
        # As the host's shell would. The job outlives it.
        answer = subprocess.run(
            ["bash", "-c", f"{flags['--command']}\n{then}"],
            cwd=tmp_path, env={"PATH": path}, check=True, timeout=30, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        return answer.stdout.strip()

    return do


@pytest.mark.parametrize("end", ["0", "143"])
def test_a_run_gives_every_host_its_place(
    end: str, host: Callable[..., str], job: tuple[str, ...], tmp_path: Path
) -> None:
    # In the plain locale bash quotes a sign that is not ASCII in a way that is its own.
    job = (*job, "--config.name=caf\u00e9")
    host("run", *job, python=f'printf "%s|" "$@"\nexit {end}', then="wait", LC_ALL="C")
    assert (tmp_path / "pdrec/log").read_text("utf-8").split("|")[:-1] == [
        "-m",
        "pdrec_jax.main",
        "--coordinator=10.0.0.7:8476",
        "--num_processes=3",
        "--process_id=1",
        *job,
    ]
    assert (tmp_path / "pdrec/status").read_text() == f"{end}\n"
    assert host("status") == end


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_is_running_from_its_start_to_its_end(
    host: Callable[..., str], stub: Callable, job: tuple[str, ...], tmp_path: Path
) -> None:
    assert host("status") == "none"
    (tmp_path / "pdrec").mkdir()
    assert host("status") == "none"
    # The metadata server takes its time: the job itself is not there yet.
    stub("curl", f"until [[ -e {tmp_path}/go ]]; do sleep 0.02; done\n{CURL}")
    host("run", *job, python=f"until [ -e {tmp_path}/end ]; do sleep 0.02; done; exit 3")
    assert host("status") == "running"
    assert not (tmp_path / "pdrec/pid").exists()
    (tmp_path / "go").touch()
    until((tmp_path / "pdrec/pid").exists)
    assert host("status") == "running"
    (tmp_path / "end").touch()
    until(lambda: host("status") != "running")
    assert host("status") == "3"
    # Nothing of the job before counts for the next one.
    (tmp_path / "go").unlink()
    host("run", *job)
    assert host("status") == "running"
    host("stop")
    until(lambda: host("status") != "running")
    assert host("status") == "lost"
    (tmp_path / "go").touch()  # the stub still asks


def test_a_host_without_a_place_is_lost(
    host: Callable[..., str], stub: Callable, job: tuple[str, ...], tmp_path: Path
) -> None:
    stub("curl", "exit 7")
    host("run", *job, then="wait")
    assert host("status") == "lost"
    assert "no answer of the metadata server" in (tmp_path / "pdrec/log").read_text()


def test_keep_does_everything_in_order(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch(
        "tpu.sh", "keep", "--zone=us-west4-a", "--type=v6e-16", "--dry-run", "--", *job,
        PDREC_SPOT="1",
    )  # fmt: skip
    commands = gcloud_commands(done)
    assert [command for command, _, _ in commands] == [
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "queued-resources delete",
    ]
    assert "--spot" in commands[0][2]
    assert commands[0][2]["--runtime-version"] == "v2-alpha-tpuv6e"
    assert done.commands[1][:4] == ["git", "-C", f"{ROOT}/launch/..", "archive"]


def test_a_clone_takes_the_place_of_an_archive(launch: Callable[..., Any]) -> None:
    done = launch(
        "tpu.sh", "setup", "--zone=us-west4-a", "--repository=https://host/x", "--commit=v1",
        "--prepare=sudo mount /shared", "--dry-run",
    )  # fmt: skip
    ((_, _, flags),) = gcloud_commands(done)
    steps = (flags["--command"] or "").split("; ")
    assert steps[1] == "sudo mount /shared"
    assert "git clone --quiet https://host/x pdrec" in steps
    assert "git -C pdrec checkout --quiet v1" in steps


# Answers as a cloud would: of describe, of the question for the job's state, of a setup and of a
# start the next line of a file, or the last one when there is none left.
CLOUD = r"""echo "$3 $4 ${*: -1}" >>"$LOG"
next() {
  head -n 1 "$1"
  [[ $(wc -l <"$1") -gt 1 ]] && sed -i 1d "$1"
  return 0
}
case "$3 $4" in
  *describe)
    state=$(next "$HOME/slice")
    [[ $state == GONE ]] && { echo "ERROR: NOT_FOUND: it was not found" >&2; exit 1; }
    [[ $state == FAILS ]] && { echo "ERROR: no token could be had" >&2; exit 1; }
    echo "$state"
    ;;
  *ssh)
    case ${*: -1} in
      *"cat status"*) answer=$(next "$HOME/job") ;;
      *"rm -rf pdrec"*) answer=$(next "$HOME/setup") ;;
      *) answer=$(next "$HOME/start") ;;
    esac
    # What the other hosts said is told all the same.
    echo -en "${answer% FAILS}${answer:+\\n}" | sed /^FAILS$/d
    [[ $answer != *FAILS ]] || exit 255
    ;;
esac
exit 0
"""

Keep = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def keep(
    launch: Callable[..., Any],
    stub: Callable[[str, str], Path],
    job: tuple[str, ...],
    tmp_path: Path,
) -> Keep:
    """Runs ``keep`` on a stub of a cloud; returns how it ended, and what it changed there."""
    log = stub("gcloud", CLOUD)
    stub("sleep", "exit 0")
    stub("git", "exit 0")

    def run(
        slices: list[str], jobs: list[str], setup: str = "", start: str = "", *options: str
    ) -> tuple[Any, list[str]]:
        files = {"slice": slices, "job": jobs, "setup": [setup], "start": [start]}
        for name, lines in files.items():
            (tmp_path / name).write_text("\n".join([*lines, ""]))
        done = launch(
            "tpu.sh", "keep", "--zone=us-west4-a", "--type=v5litepod-16", *options, "--", *job,
            HOME=str(tmp_path),
        )  # fmt: skip
        names = {"rm -rf pdrec": "setup", "nohup": "start", "cat status": "", "describe": ""}
        called = []
        for line in log.read_text().splitlines():
            known = [short for part, short in names.items() if part in line]
            called += known or [line.split()[1]]
        return done, [one for one in called if one and one != "scp"]

    return run


MADE = ["create", "setup", "start"]


@pytest.mark.parametrize(
    ("slices", "jobs", "status", "changes"),
    [
        # Waits, runs, and is done.
        (["GONE", "WAITING_FOR_RESOURCES", "ACTIVE"], ["running", "0"], 0, MADE),
        # Preempted in the middle of it: asked for again, and done.
        (
            ["GONE", "ACTIVE", "ACTIVE", "SUSPENDED", "GONE", "ACTIVE"],
            ["running", "0"],
            0,
            [*MADE, "delete", *MADE],
        ),
        # The job was told to end by a notice, before the slice went.
        (["GONE", "ACTIVE", "ACTIVE", "GONE", "ACTIVE"], ["143", "0"], 0, [*MADE, "delete", *MADE]),
        # A host was put in place of another, and knows of no job.
        (
            ["GONE", "ACTIVE", "ACTIVE", "GONE", "ACTIVE"],
            ["none\\nrunning", "0"],
            0,
            [*MADE, "delete", *MADE],
        ),
        # gcloud fails for a while: nothing is given back, nothing is asked for twice.
        (
            ["FAILS", "GONE", "FAILS", "ACTIVE", "ACTIVE", "FAILS", "FAILS", "ACTIVE"],
            ["running", "running", "running", "0"],
            0,
            MADE,
        ),
        # An error of the job's is not tried again.
        (["GONE", "ACTIVE"], ["1"], 2, MADE),
        # A second `keep` finds the job running, and only watches.
        (["ACTIVE"], ["running", "running", "0"], 0, []),
        # Also where a host does not answer the first time, or some did and said nothing of running.
        (["ACTIVE"], ["FAILS", "none FAILS", "running FAILS", "running", "0"], 0, []),
        # What ended there, or was never begun, is begun.
        (["ACTIVE"], ["FAILS", "none", "running", "0"], 0, MADE[1:]),
        (["ACTIVE"], ["143", "running", "0"], 0, MADE[1:]),
        # The slice goes while nobody knows whether a job runs there.
        (["ACTIVE", "ACTIVE", "GONE", "ACTIVE"], ["FAILS", "running", "0"], 0, MADE),
    ],
)
def test_keep_recreates_what_was_preempted(
    slices: list[str], jobs: list[str], status: int, changes: list[str], keep: Keep
) -> None:
    done, called = keep(slices, jobs)
    assert done.status == status, done.err
    assert called == [*changes, "delete"]
    if status:
        assert "the job ended with status 1" in done.err


def test_keep_without_a_queue(keep: Keep) -> None:
    done, called = keep(["GONE", "READY"], ["running", "0"], "", "", "--direct")
    assert (done.status, called) == (0, [*MADE, "delete"])


def test_keep_ends_where_setup_fails_on_a_slice_that_is_there(keep: Keep) -> None:
    done, called = keep(["GONE", "ACTIVE", "ACTIVE", "FAILS", "ACTIVE"], [""], setup="FAILS")
    assert (done.status, called) == (2, ["create", "setup", "delete"])
    assert done.err.splitlines()[-1] == (
        "error: setup failed on pdrec, which is ACTIVE; what the hosts said stands above"
    )


def test_keep_gives_up_where_every_slice_goes_before_the_job_starts(keep: Keep) -> None:
    done, called = keep(["GONE", "ACTIVE", "PREEMPTED"] * 9, [""], setup="FAILS")
    assert (done.status, called) == (2, ["create", "setup", "delete"] * 5)
    assert "error: pdrec: 5 slices in a row were gone before the job was started" in done.err


@pytest.mark.parametrize(
    ("jobs", "status"),
    [
        (["running", "running", "0"], 0),  # the connection was lost after all had started
        (["FAILS", "running", "0"], 0),
        (["none\\nrunning"], 2),  # those that run would wait for the others in vain
        (["none"], 2),
    ],
)
def test_a_start_that_fails_may_have_been_one(jobs: list[str], status: int, keep: Keep) -> None:
    done, called = keep(["GONE", "ACTIVE"], jobs, start="FAILS")
    assert (done.status, called) == (status, [*MADE, "delete"])
    assert ("error: start failed on pdrec, which is ACTIVE" in done.err) == bool(status)
