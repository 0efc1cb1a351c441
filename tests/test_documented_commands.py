"""Every command in README and docs: its flags exist, and it runs, or stands here with a reason.

A command is a line of a ```bash block, with the lines that it goes on to. The quick tests parse
each; `-m slow` runs them, page by page and in order, on small simulated data.
"""

import argparse
import csv
import dataclasses
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

from pdrec_jax.encoders import registry
from pdrec_jax.errors import UserError
from pdrec_jax.main import parse
from pdrec_jax.overrides import apply_protocol, validate

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)

# What is not run, and why. Each must match a command, or it is out of date.
NOT_RUN = {
    r"^([A-Z_]+=\S+ )?make (setup|format|lint|test)\b|^\.ci/run": "is what CI itself runs",
    r"^make docs\b": "test_docs.py builds the site",
    r"-m pytest\b": "is a part of the tests",
    r"^taskset ": "needs the cores that it names",
    r"pip install|^python3 -m venv|^git clone": "needs the network; CI makes its environment so",
    r"data\.source=real": "needs the real logs, and an hour",
    r"reproduce .*--out=docs/runs": "reads the kept runs, which are of the real logs",
    r"prepare --dataset=": "downloads from GitHub",
    r"--reference=": "needs a clone of the reference, and PyTorch",
    r"pdrec_jax\.(compare (BASE|runs/)|keep )": "needs finished runs; tests/finished makes them",
    r"pdrec_jax\.fuse runs/(toy|game)-strict-": "needs runs on the real logs",
    r"^kubectl ": "needs a cluster",
    r"^launch/(slurm|kubernetes|tpu)\.sh": "needs a cluster; tests/launch reads what would run",
}
if importlib.util.find_spec("libtpu") is None:
    NOT_RUN[r"--topology=v"] = "needs the extra tpu"
# Flags that make a run short; they come last, and so win.
TINY = (
    "--config.progress=False --config.diffusion.epochs=1 --config.diffusion.hidden=(16,) "
    "--config.encoder.epochs=1 --config.encoder.first_evaluation=1 --config.encoder.width=16 "
    "--config.simulation.num_users=150 --config.simulation.num_items=400"
)
SMALL = "--data=simulated --users=40 --items=300 --source_items=0 --hidden=16 --repeats=1 --steps=1"
SHORTER = {
    r"pdrec_jax\.(main|convert) |^make run|launch/local\.sh": TINY,
    r"pdrec_jax\.reproduce ": f"{TINY} --config.data.source=simulated",
    r"pdrec_jax\.benchmark(?!\.growth)": f"{SMALL} --max_length=16 --product=64",
    r"pdrec_jax\.benchmark\.growth": "--sizes=200,300 --repeats=1",
}
# In scripts: how many rows they make.
FEWER = {"- 1000000 <<": "- 3000 <<", "default_rng(0), 1_000_000": "default_rng(0), 1_000"}
# A page whose commands go on in the folder of another one.
GOES_ON = {"docs/inspect.md": "docs/tutorial.md", "docs/recommend.md": "README.md"}
# What a page takes as given.
BEFORE = {
    "docs/reference_models.md": (
        "python -m pdrec_jax.main --config=configs/toy.py --workdir=runs/ours",
        "python -m pdrec_jax.convert export --file=amazon_toy.pth --config=configs/toy.py "
        "--workdir=runs/ours",
    )
}
# Modules that hand on what they do not know; others take fields of the config.
HANDS_ON = {
    "pdrec_jax.benchmark.growth": "pdrec_jax.benchmark",
    "pdrec_jax.plan": "pdrec_jax.main",
    "pdrec_jax.convert": "pdrec_jax.main",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page; ``script`` is what a heredoc hands to it."""

    page: str
    line: str
    script: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {self.line[:70]}"

    @property
    def module(self) -> str | None:
        """The module that it runs with -m, None for another command."""
        found = re.search(r"\bpython3? -m (pdrec_jax[\w.]*)", self.line)
        return found[1] if found else None

    @property
    def words(self) -> list[str]:
        """What a shell makes of the line, without its comment and what it sets before."""
        words = shlex.split(self.line, comments=True)
        return list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))

    @property
    def reason(self) -> str | None:
        """Why it is not run, None where it is."""
        return next((why for what, why in NOT_RUN.items() if re.search(what, self.line)), None)


def commands_of(page: str, text: str) -> Iterator[Command]:
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        lines = iter(block.replace("\\\n", " ").splitlines())
        for line in lines:
            script, mark = [], re.search(r"<<\s*'?(\w+)'?", line)
            while mark and (row := next(lines)) != mark[1]:
                script.append(row)
            if line.strip() and not line.lstrip().startswith("#"):
                yield Command(page, line.strip(), "".join(f"{row}\n" for row in script))


COMMANDS = [
    command
    for page in PAGES
    for command in commands_of(page, (ROOT / page).read_text(encoding="utf-8"))
]


def lay_out(folder: Path) -> None:
    """Puts into a folder what the commands of a page find in a clone, and a log of one's own."""
    for name in ("configs", "docs", "launch", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert found
    (folder / "mean.py").write_text(found[1])
    rows = (f"u{n % 90},i{n * 7919 % 211},{1_600_000_000 + n * 3600}\n" for n in range(1200))
    (folder / "log.csv").write_text("user,item,time\n" + "".join(rows))
    (folder / "new.csv").write_text("user_id,item_id,timestamp\nann,i3,1\nann,i9,2\nbo,i7,1\n")
    (folder / "ids.txt").write_text("u1\nu2\n")


class Parsed(BaseException):
    """The arguments of a module are fine; what it hands on."""

    def __init__(self, rest: list[str]) -> None:
        self.rest = rest


def check_arguments(module: str, arguments: list[str]) -> None:
    """Lets a module parse its arguments, and stops it there."""
    if module == "pdrec_jax.main":
        command = parse([module, *arguments])
        validate(apply_protocol(command.config, command.by_hand))
        return
    known = argparse.ArgumentParser.parse_known_args

    def parse_known(self: argparse.ArgumentParser, given: Any = None, *_: Any) -> NoReturn:
        raise Parsed(known(self, given)[1])

    def parse_all(self: argparse.ArgumentParser, given: Any = None, *_: Any) -> NoReturn:
        _, rest = known(self, given)
        if rest:
            self.error(f"unrecognized arguments: {rest}")
        raise Parsed([])

    entry = importlib.import_module(module)
    if hasattr(entry, "__path__"):  # a package
        entry = importlib.import_module(f"{module}.__main__")
    with (
        patch.object(argparse.ArgumentParser, "parse_known_args", parse_known),
        patch.object(argparse.ArgumentParser, "parse_args", parse_all),
        pytest.raises(Parsed) as stopped,
    ):
        entry.main(arguments)
    rest = stopped.value.rest
    if not rest:
        return
    if module in HANDS_ON:
        check_arguments(HANDS_ON[module], rest)
    else:
        assert all(word.startswith("--config.") for word in rest), rest
        datasets = [word for word in arguments if word.startswith("--datasets=")]
        first = (*datasets, "--datasets=custom")[0].removeprefix("--datasets=").partition(",")[0]
        file, colon, variant = first.partition(":")
        path = Path("configs", f"{file}.py")
        config = f"{path}{colon}{variant}" if path.exists() else "configs/custom.py"
        check_arguments("pdrec_jax.main", [f"--config={config}", *rest])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    lay_out(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one_that_there_is(command, clone, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clone)
    # A config file may register an encoder.
    monkeypatch.setattr(registry, "_ENCODERS", dict(registry._ENCODERS))
    words = command.words
    if command.script:
        compile(command.script, command.page, "exec")
    elif command.module:
        check_arguments(command.module, words[words.index("-m") + 2 :])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
        for word in words[2:]:
            assert re.match(r"(ARGS|PYTHON|VENV|CONFIG|SITE)=", word)
            if words[1] == "run" and word.startswith("ARGS="):
                given = shlex.split(word.removeprefix("ARGS="))
                check_arguments("pdrec_jax.main", ["--config=configs/toy.py", *given])
    elif "pip" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"'?\.\[([\w,]+)\]", command.line)
        asked = [extra for group in asked for extra in group.split(",")]
        assert set(asked) <= set(extras["optional-dependencies"])
    elif words[0] == ".ci/run":
        assert os.access(ROOT / ".ci/run", os.X_OK)
    else:
        script = next((word for word in words if word.endswith((".py", ".sh"))), None)
        assert command.reason or (script and (ROOT / script).is_file())


def test_a_command_that_there_is_not_is_found(clone, monkeypatch) -> None:
    monkeypatch.chdir(clone)
    text = "```bash\npython -m pdrec_jax.inspect --workdir=a \\\n  --usr=b\n```\n"
    (command,) = commands_of("page", text)
    assert command.words[-1] == "--usr=b"
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        check_arguments("pdrec_jax.inspect", command.words[3:])
    for flag in ("--config=configs/none.py", "--config=configs/toy.py --config.sed=1"):
        with pytest.raises(UserError):
            check_arguments("pdrec_jax.main", flag.split())


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_no_exception_is_out_of_date(pattern) -> None:
    assert any(re.search(pattern, command.line) for command in COMMANDS)


def shell_line(command: Command) -> str:
    """The command as it is run here: with this interpreter, and short."""
    line = re.sub(r"(^|&& )(\.venv/bin/)?python3?(?= )", rf"\1{sys.executable}", command.line)
    if command.line.startswith("make run"):
        words = [word for word in command.words if word.startswith("ARGS=")]
        given = words[0].removeprefix("ARGS=") if words else ""
        line = f"{sys.executable} -m pdrec_jax.main --config=configs/toy.py {given}"
    for long, short in FEWER.items():
        line = line.replace(long, short)
    for what, flags in SHORTER.items():
        if re.search(what, command.line):
            # Behind the command, but before its comment.
            bare, mark, comment = line.partition(" #")
            line = f"{bare} {' '.join(map(shlex.quote, flags.split()))}{mark}{comment}"
    return line


def run_page(page: str, folder: Path) -> list[str]:
    """Runs what a page has, in order; returns what its commands printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment |= {"PYTHON": sys.executable}
    environment.pop("PDREC_DATA", None)
    out = []
    before = [Command(page, line) for line in BEFORE.get(page, ())]
    for command in before + [command for command in COMMANDS if command.page == page]:
        if command.reason:
            continue
        script = command.script
        for long, short in FEWER.items():
            script = script.replace(long, short)
        line = re.sub(r"<<\s*'?\w+'?", "", shell_line(command))
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            input=script,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, (
            f"{command}\n{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
        out.append(done.stdout)
    return out


RUN = [page for page in PAGES if any(c.page == page and c.reason is None for c in COMMANDS)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, tmp_path) -> None:
    lay_out(tmp_path)
    if page in GOES_ON:
        run_page(GOES_ON[page], tmp_path)
    run_page(page, tmp_path)


@pytest.mark.slow
def test_the_tutorial_ends_with_recommendations_and_a_page(tmp_path) -> None:
    lay_out(tmp_path)
    (tmp_path / "log.csv").unlink()
    out = run_page("docs/tutorial.md", tmp_path)
    with (tmp_path / "recs.csv").open(newline="") as file:
        people = [row["user"] for row in csv.DictReader(file)]
    assert people == ["anna"] * 5 + ["bo"] * 5 + ["carla"] * 5
    assert "<h1>User customer-7</h1>" in (tmp_path / "customer-7.html").read_text()
    assert "user customer-7" in out[-1]
