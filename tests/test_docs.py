"""The documentation: links lead somewhere, references leave nothing out, pictures are true."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pdrec_jax.settings import FIELDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = {"configuration.md"}  # while the site is built


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hook that MkDocs calls; it needs no MkDocs to be loaded."""
    return load("docs/hooks/site.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    targets += re.findall(r'<img src="([^":]+)"', text)
    for target in targets:
        if target not in WRITTEN:
            assert (page.parent / target).exists(), target


def test_images_have_words() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "![](" not in text
        assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", text))


def test_every_setting_is_in_the_reference(site) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.*) \| (.*) \|$", site.configuration(), re.M)
    assert [name for name, *_ in rows] == list(FIELDS)  # sections stand together there too
    for name, default, meaning, allowed in rows:
        field = FIELDS[name]
        assert (default, meaning, allowed) == (
            repr(field.default),
            field.meaning.replace("|", "\\|"),
            field.expected.replace("|", "\\|"),
        )
    assert set(site.SECTIONS) == {name.rpartition(".")[0] for name in FIELDS}


def test_every_public_module_is_in_the_api(site) -> None:
    listed = {
        name for page in site.api().values() for name in re.findall(r"^::: (.*)$", page, re.M)
    }
    assert {"pdrec_jax.settings", "pdrec_jax.encoders.encoder", "pdrec_jax.plugins.hbr"} <= listed
    for path in (ROOT / "pdrec_jax").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        public = re.search(r"^(def|class) [a-z_A-Z](?<!_)", path.read_text("utf-8"), re.M)
        if public and "__" not in name and ".benchmark" not in name:
            assert name in listed


@pytest.mark.parametrize(
    ("link", "from_root", "on_site"),
    [
        ("[a](../README.md)", False, "[a](readme.md)"),
        ("[a](docs/design.md#house)", True, "[a](design.md#house)"),
        ("[a](design.md)", False, "[a](design.md)"),
        ("[a](LICENSE)", True, "a (`LICENSE` in the repository)"),
        (
            "[a](runs/reference/table1-toy-game-5seeds.md)",
            False,
            "a (`docs/runs/reference/table1-toy-game-5seeds.md` in the repository)",
        ),
        ("[a](https://example.org/x)", True, "[a](https://example.org/x)"),
        ("![a](pictures/flow.svg)", False, "![a](pictures/flow.svg)"),
    ],
)
def test_links_of_the_repository_hold_on_the_site(site, link, from_root, on_site) -> None:
    assert site.site_links(link, from_root=from_root) == on_site


def test_pictures_are_what_their_script_draws() -> None:
    draw = load("docs/pictures/draw.py")
    for name, make in draw.PICTURES.items():
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text("utf-8") == make()


def test_screenshots_are_small() -> None:
    for path in (ROOT / "docs").rglob("*.png"):
        assert path.stat().st_size < 200_000, path


@pytest.mark.slow
def test_the_site_builds_and_asks_nobody_else(tmp_path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for path in tmp_path.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]+(src|href)="https?:', page)
    for name in FIELDS:
        assert f"<code>{name}</code>" in (tmp_path / "configuration.html").read_text("utf-8")
