"""What MkDocs does beside the pages that lie in docs/: pages that are written from the code.

The configuration reference comes from ``pdrec_jax.settings.FIELDS``, the API pages from the modules
that there are, and README, CONTRIBUTING and CHANGELOG join as they stand in the root.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
FROM_ROOT["CHANGELOG.md"] = "changelog.md"

# Sections of the configuration, in order, and what stands above each.
SECTIONS = {
    "": "The run",
    "data": "Data",
    "simulation": "Simulated log",
    "diffusion": "Diffusion",
    "hbr": "HBR",
    "nns": "NNS",
    "dpa": "DPA",
    "encoder": "Encoder",
    "evaluation": "Evaluation",
}


_ABOUT_API = """What the modules offer, from their docstrings; letters of shapes are those of
[Design](../design.md). Commands (`python -m pdrec_jax.NAME --help`) are not listed."""


def on_config(config: Any) -> Any:
    """Puts the API pages into the navigation."""
    for entry in config.nav:
        if isinstance(entry, dict) and "API" in entry:
            entry["API"] = list(api())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are no files in docs/."""
    from mkdocs.structure.files import File

    made = {"configuration.md": configuration(), **api()}
    for name, page in FROM_ROOT.items():
        made[page] = (ROOT / name).read_text(encoding="utf-8")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links that hold in the repository into links that hold on the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    return site_links(markdown, from_root=page.file.src_uri in FROM_ROOT.values())


def site_links(markdown: str, *, from_root: bool) -> str:
    """Rewrites relative links; one to a file that the site lacks becomes the file's name.

    Args:
        markdown: of a page.
        from_root: whether the page lies in the root of the repository, and not in docs/.
    """

    def rewrite(found: re.Match[str]) -> str:
        words, target, anchor = found["words"], found["target"], found["anchor"] or ""
        base = ROOT if from_root else ROOT / "docs"
        path = (base / target).resolve()
        if path.parent == ROOT and path.name in FROM_ROOT:
            return f"[{words}]({FROM_ROOT[path.name]}{anchor})"
        if path.is_relative_to(ROOT / "docs") and not path.is_relative_to(ROOT / "docs" / "runs"):
            return f"[{words}]({path.relative_to(ROOT / 'docs')}{anchor})"
        if path.is_relative_to(ROOT) and path.exists():
            return f"{words} (`{path.relative_to(ROOT)}` in the repository)"
        return found[0]

    link = r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)"
    return re.sub(link, rewrite, markdown)


def configuration() -> str:
    """Writes the configuration reference from the fields themselves."""
    from pdrec_jax.settings import FIELDS

    lines = [
        "# Configuration",
        "",
        "Every field with its default, what it means and what it may be. A file in `configs/`",
        "starts from these defaults; on the command line a field is set as",
        "`--config.FIELD=VALUE`, and wins over the file. This page is written from",
        "`pdrec_jax/settings.py` when the site is built.",
    ]
    by_section: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for name in FIELDS:
        by_section.setdefault(name.rpartition(".")[0], []).append(name)
    for section, names in by_section.items():
        lines += ["", f"## {SECTIONS.get(section, section.capitalize())}", ""]
        lines += ["| field | default | meaning | allowed |", "| --- | --- | --- | --- |"]
        for name in names:
            field = FIELDS[name]
            cells = (f"`{name}`", f"`{field.default!r}`", field.meaning, field.expected)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def api() -> dict[str, str]:
    """Writes a page a package: the classes and functions of its public modules.

    Returns:
        The pages by path.
    """
    modules: dict[str, list[str]] = {}
    for module in public_modules():
        parts = module.split(".")
        modules.setdefault(parts[1] if len(parts) > 2 else parts[0], []).append(module)
    pages = {}
    for package, names in sorted(modules.items()):
        blocks = "\n\n".join(f"::: {name}" for name in names)
        pages[f"api/{package}.md"] = f"# {package}\n\n{_ABOUT_API}\n\n{blocks}\n"
    return pages


def public_modules() -> Iterator[str]:
    """Yields the dotted names of modules with a public function or class, commands left out."""
    package = ROOT / "pdrec_jax"
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).parts):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or parts[1] == "benchmark":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        if any(isinstance(node, kinds) and node.name[0] != "_" for node in tree.body):
            yield ".".join(parts)
