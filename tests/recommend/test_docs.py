"""What docs/recommend.md shows is run as it stands there."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pdrec_jax.export.__main__ import main as export
from pdrec_jax.fuse.__main__ import main as fuse
from pdrec_jax.given import prepare
from pdrec_jax.main import parse
from pdrec_jax.recommend.__main__ import main as recommend
from pdrec_jax.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "recommend.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Named in the page, and too long for a quick test; test_memory.py runs their like.
MANY = "runs/many"
OURS = {"fuse": fuse, "recommend": recommend, "export": export}


def commands(text: str) -> list[list[str]]:
    """The module and the arguments of every command of a page."""
    whole = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?:\.venv/bin/)?python -m pdrec_jax\.(\w+ .*)$", whole, re.M)
    return [shlex.split(line) for line in found]


@pytest.fixture
def folder(texts: Path, finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with what the page names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run = tmp_path / "runs" / "mine-strict-0"
    shutil.copytree(texts, run)
    given, _ = prepare(Workdir.open(run).config, [texts.parent / "log.csv"])
    finish(run, given, lambda key: (len(key), len(key)))  # any ranks
    (tmp_path / "ids.txt").write_text("u1\nu2\n")
    (tmp_path / "new.csv").write_text("user_id,item_id,timestamp\nann,item 3,1\nbob,item 4,2\n")
    return tmp_path


@pytest.mark.parametrize("page", [TEXT, README], ids=["recommend.md", "README.md"])
def test_commands(folder: Path, page: str) -> None:
    ours = [c for c in commands(page) if c[0] in OURS and MANY not in str(c)]
    assert {command[0] for command in ours} >= {"recommend", "export"}
    for module, *arguments in ours:
        assert OURS[module](arguments) == 0
        out = next(a for a in arguments if a.startswith("--out=")).removeprefix("--out=")
        assert (folder / out).exists()


def test_the_long_commands_are_commands() -> None:
    (train,) = (c for c in commands(TEXT) if c[0] == "main")
    train[1] = train[1].replace("configs", str(ROOT / "configs"))
    assert parse(train).config.simulation.num_users == 100_000


def test_python(folder: Path) -> None:
    _, _, rest = TEXT.partition("## In Python\n\n```python\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(rest.partition("```")[0], "recommend.md", "exec"), {})
    assert printed.getvalue().count("popularity") == 2  # the page's ids are nobody's
