"""What `COPY . .` of launch/Dockerfile takes into the image, by .dockerignore."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lines(name: str) -> list[str]:
    found = (ROOT / name).read_text().splitlines()
    return [line for line in found if line and not line.startswith("#")]


def stays_out(path: str) -> bool:
    """Whether Docker leaves a file out: a pattern is of the whole path, or of a folder above it."""
    forms = []
    for pattern in lines(".dockerignore"):
        anywhere = pattern.startswith("**/")
        form = re.escape(pattern.removeprefix("**/")).replace(r"\*", "[^/]*")
        form = form.replace(r"\[", "[").replace(r"\]", "]")
        forms.append(("(.*/)?" if anywhere else "") + form + "(/.*)?")
    return any(re.fullmatch(form, path) for form in forms)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".venv-3.12/bin/python",
        "data/toy/events.parquet",
        "runs/book/results.json",
        "pdrec_jax/data/__pycache__/splits.cpython-312.pyc",
        "pdrec_jax.egg-info/PKG-INFO",
    ],
)
def test_what_is_of_this_machine_stays_out(path: str) -> None:
    assert stays_out(path)


def test_what_git_ignores_stays_out() -> None:
    # There a pattern with a slash at its start is of the top, and one without of any place.
    for pattern in lines(".gitignore"):
        path = pattern.strip("/").replace("[cod]", "c").replace("*", "x")
        assert stays_out(path), pattern
        assert pattern.startswith(("/", ".venv")) or stays_out(f"pdrec_jax/{path}"), pattern
        assert not pattern.startswith("/") or not stays_out(f"pdrec_jax/{path}/x.py"), pattern


def test_what_the_image_needs_is_in_it() -> None:
    # pip reads the version from the package, and what to install and to describe from these.
    needed = ["pyproject.toml", "requirements.txt", "README.md", "LICENSE"]
    for folder in ("pdrec_jax", "configs"):
        needed += [str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file()]
    needed = [path for path in needed if "__pycache__" not in path]
    assert len(needed) > 100
    assert [path for path in needed if stays_out(path) or not (ROOT / path).is_file()] == []
