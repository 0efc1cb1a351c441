"""The picture of imports in docs/design.md: who may know whom, and where heavy libraries stand."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pdrec_jax"

SHARED = frozenset(
    {
        "errors",
        "fields",
        "files",
        "interrupts",
        "locks",
        "manifest",
        "settings",
        "overrides",
        "consistency",
        "workdir",
        "phase_records",
        "metric_log",
        "random_bits",
        "row_adam",
        "rows",
        "sharding",
        "processes",
        "checkpoints",
        "saved_trees",
        "command",
        "compilation",
        "memory",
        "training",
        "training_together",
    }
)
# First part of a module's name below pdrec_jax -> the first parts that it may import.
MAY_IMPORT: dict[str, frozenset[str]] = {
    # pdrec_jax/__init__.py, which everyone loads first; what it offers of `main` and `recommend` is
    # loaded when somebody asks for it.
    "": frozenset({"xla_flags", "starting", "main", "recommend"}),
    "xla_flags": frozenset(),
    "starting": frozenset(),
    **dict.fromkeys(SHARED, SHARED),
    "data": SHARED | {"data"},
    "evaluation": SHARED | {"data", "evaluation"},
    "plugins": SHARED | {"data", "plugins"},
    "diffusion": SHARED | {"data", "evaluation", "diffusion"},
    "encoders": SHARED | {"data", "evaluation", "plugins", "encoders", "diffusion"},
    "report": SHARED | {"data", "evaluation", "report"},
    "given": SHARED | {"data", "evaluation", "diffusion"},
    "other_runs": SHARED | {"diffusion", "given"},
    "phases": SHARED
    | {"data", "evaluation", "plugins", "diffusion", "encoders", "given", "other_runs"},
    "run_models": SHARED | {"diffusion", "encoders", "given", "other_runs", "phases"},
    "seeds": SHARED
    | {"data", "evaluation", "diffusion", "encoders", "report", "phases", "run_models", "seeds"}
    | {"given", "other_runs"},
    "experiment": SHARED
    | {"data", "evaluation", "plugins", "diffusion", "encoders", "report", "phases", "seeds"}
    | {"run_models", "given", "other_runs", "experiment"},
    "main": SHARED | {"data", "evaluation", "report", "experiment"},
    # Runs experiments as the command line does; nobody may know it. Of `prepare` it takes Table 2.
    "reproduce": SHARED
    | {"data", "encoders", "evaluation", "report", "phases", "experiment", "main"}
    | {"other_runs", "prepare", "reproduce"},
    # Explains one user of a run; nobody may know it.
    "inspect": SHARED
    | {"data", "evaluation", "plugins", "diffusion", "encoders", "report", "phases", "seeds"}
    | {"recommend", "main", "given", "other_runs", "inspect"},
    # Reads what runs have left; nobody may know it.
    "compare": SHARED | {"evaluation", "report"},
    "keep": SHARED,
    # Adds two models' scores, as the recommender does; nobody may know it.
    "fuse": SHARED
    | {"data", "evaluation", "given", "experiment", "recommend", "compare", "main"}
    | {"fuse"},
    # Compiles what a job would run, and runs nothing; nobody may know it.
    "plan": SHARED | {"data", "evaluation", "diffusion", "encoders", "given", "main"} | {"plan"},
    # Takes in and gives back the reference's models.
    "convert": SHARED | {"data", "given", "run_models", "experiment", "main", "convert"},
    # Makes the logs that the main job reads, before it runs.
    "prepare": SHARED | {"data", "prepare"},
    # Serves what the main job trained, with the readers that made its log.
    "recommend": SHARED
    | {"data", "evaluation", "diffusion", "encoders", "prepare", "main"}
    | {"recommend"},
    "export": SHARED | {"data", "diffusion", "encoders", "recommend", "main", "export"},
    # Times whatever there is; nobody may know it.
    "benchmark": SHARED
    | {"data", "evaluation", "plugins", "diffusion", "encoders", "report", "phases", "experiment"}
    | {"given", "benchmark"},
}
STAGES = tuple(
    f"pdrec_jax.{folder}.{name}"
    for folder in ("diffusion", "encoders")
    for name in ("stage", "task")
)
USERS_OF_STAGES = ("phases", "run_models", "benchmark", "recommend", "inspect", "plan")
PREFERENCES = ("pdrec_jax.diffusion.preferences", "pdrec_jax.diffusion.redraw")

OWNERS = {
    "flax": ("pdrec_jax.diffusion.denoiser", "pdrec_jax.encoders"),
    "orbax": ("pdrec_jax.checkpoints",),
}
MESH_OWNER = "pdrec_jax.sharding"
MESH_MAKERS = ("jax.make_mesh", "jax.experimental.mesh_utils")
MESH_CLASSES = ("jax.sharding.Mesh", "jax.interpreters.pxla.Mesh")
LAZY = ("matplotlib", "torch", "tensorboardX", "libtpu", "pyarrow")
PICKLES = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


@dataclasses.dataclass(frozen=True)
class Import:
    """An imported name, `from a import b` being a.b; at_start: it runs as the module is loaded."""

    line: int
    target: str
    at_start: bool


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return None


def names_of(node: ast.AST, package: str) -> list[str]:
    """The absolute names that a statement or an `import_module("...")` call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            kept = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*kept, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = dotted(node.func)
        if called in ("importlib.import_module", "import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def imports(node: ast.AST, package: str, at_start: bool = True) -> Iterator[Import]:
    for name in names_of(node, package):
        yield Import(node.lineno, name, at_start)
    if isinstance(node, ast.If) and (dotted(node.test) or "").endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from imports(child, package, at_start=False)
        for child in node.orelse:
            yield from imports(child, package, at_start)
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_start = False
    for child in ast.iter_child_nodes(node):
        yield from imports(child, package, at_start)


def aliases(tree: ast.Module, package: str) -> dict[str, str]:
    """What each local name stands for, so that `import jax.sharding as s` hides no `s.Mesh`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias, target in zip(node.names, names_of(node, package), strict=True):
                if alias.asname or isinstance(node, ast.ImportFrom):
                    found[alias.asname or alias.name] = target
    return found


def fault_of_import(module: str, target: str, at_start: bool) -> str | None:
    group = module.split(".")[1] if "." in module else ""
    if target.startswith("pdrec_jax."):
        other = target.split(".")[1]
        if other == "__version__":
            return None
        if other not in MAY_IMPORT.get(group, frozenset()):
            return f"may not know {target}"
        if within(target, STAGES) and not (group in USERS_OF_STAGES or within(module, STAGES)):
            return f"{target} is for {' and '.join(USERS_OF_STAGES)} alone"
        if group == "encoders" and other == "diffusion" and not within(target, PREFERENCES):
            return f"of diffusion an encoder knows preferences alone, not {target}"
    for library, owners in OWNERS.items():
        if within(target, (library,)) and not within(module, owners):
            return f"{library} is for {' and '.join(owners)} alone"
    if at_start and within(target, LAZY):
        return f"{target} is imported inside the function that needs it"
    if within(target, PICKLES):
        return f"{target} can run code from a file"
    if within(target, MESH_MAKERS) and module != MESH_OWNER:
        return f"a mesh is made in {MESH_OWNER} alone"
    return None


def faults_of_use(tree: ast.Module, module: str, package: str) -> Iterator[tuple[int, str]]:
    local = aliases(tree, package)

    def absolute(node: ast.AST) -> str:
        head, dot, rest = (dotted(node) or "").partition(".")
        return f"{local.get(head, head)}{dot}{rest}"

    for node in ast.walk(tree):
        # The class may stand in an annotation anywhere; the functions only make meshes.
        makes_mesh = (isinstance(node, ast.Attribute) and within(absolute(node), MESH_MAKERS)) or (
            isinstance(node, ast.Call) and within(absolute(node.func), MESH_CLASSES)
        )
        if makes_mesh and module != MESH_OWNER:
            yield node.lineno, f"a mesh is made in {MESH_OWNER} alone"
        allowed = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if allowed and getattr(node.value, "value", True) is not False:
            yield node.lineno, "allow_pickle can run code from a file"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Every breach of the rules in one module, as `module:line: what`."""
    tree = ast.parse(source)
    package = module if is_package else module.rpartition(".")[0]
    found = set(faults_of_use(tree, module, package))
    for item in imports(tree, package):
        if fault := fault_of_import(module, item.target, item.at_start):
            found.add((item.line, fault))
    if "." in module and module.split(".")[1] not in MAY_IMPORT:
        found.add((1, "has no place in the picture: give it one here and in docs/design.md"))
    return [f"{module}:{line}: {fault}" for line, fault in sorted(found)]


def violations_below(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package.parent).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package)
    return found


def test_no_module_imports_what_it_may_not_know() -> None:
    assert (PACKAGE / "__init__.py").is_file()
    assert violations_below(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.readers", "from pdrec_jax.diffusion import schedule"),
        ("data.readers", "from pdrec_jax import plugins"),
        ("data.readers", "from ..evaluation import ranking"),
        ("data.readers", "import pyarrow.csv as csv"),
        ("data.readers", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("data.readers", "class Log:\n    import matplotlib"),
        ("data.readers", "def f(path):\n    import pickle"),
        ("data.readers", "import numpy\nnumpy.load('x', allow_pickle=True)"),
        ("data.readers", "import importlib\nimportlib.import_module('pickle')"),
        ("diffusion.reverse", "from pdrec_jax.plugins.hbr import weights"),
        ("diffusion.reverse", "def f():\n    import pdrec_jax.plugins.hbr"),
        ("diffusion.reverse", "from pdrec_jax.diffusion.stage import run"),
        ("diffusion.reverse", "from flax import nnx"),
        ("diffusion.stage", "from pdrec_jax.encoders.losses import total"),
        ("plugins.dpa", "from pdrec_jax.diffusion.preferences import Preferences"),
        ("plugins.dpa", "import flax"),
        ("encoders.sasrec", "from pdrec_jax.diffusion.denoiser import Denoiser"),
        ("encoders.sasrec", "from pdrec_jax.diffusion import schedule, preferences"),
        ("encoders.sasrec", "from pdrec_jax import diffusion"),
        ("encoders.sasrec", "from . import stage"),
        ("encoders.stage", "import pdrec_jax.experiment"),
        ("training", "from pdrec_jax.encoders import stage"),
        ("training", "from .data import batches"),
        ("training", "import orbax.checkpoint as ocp"),
        ("training", "import flax.nnx"),
        ("training", "import jax\nmesh = jax.make_mesh((2,), ('data',))"),
        ("training", "import jax\nmaker = jax.make_mesh"),
        ("training", "from jax import make_mesh"),
        ("training", "from jax.sharding import Mesh as M\nmesh = M([], ())"),
        ("training", "import jax.sharding as s\nmesh = s.Mesh([], ())"),
        ("training", "import jax\nmesh = jax.sharding.Mesh([], ())"),
        ("training", "from jax.experimental import mesh_utils"),
        ("metric_log", "import tensorboardX"),
        ("experiment", "from pdrec_jax import main"),
        ("seeds", "from pdrec_jax import experiment"),
        ("experiment", "from pdrec_jax.diffusion import stage"),
        ("phases", "from pdrec_jax import experiment"),
        ("phases", "from pdrec_jax.report import tables"),
        ("workdir", "from pdrec_jax.data import splits"),
        ("main", "from pdrec_jax.diffusion.stage import run"),
        ("main", "from pdrec_jax import benchmark"),
        ("experiment", "from pdrec_jax.reproduce import plan"),
        ("phases", "from pdrec_jax.benchmark.contest import measure"),
        ("training", "from . import benchmark"),
        ("experiment", "from pdrec_jax.inspect import explanation"),
        ("benchmark.reverse", "from pdrec_jax import main"),
        ("benchmark.reverse", "import torch"),
        ("phases", "from pdrec_jax.plan import cost"),
        ("plan.compile", "import libtpu"),
        ("prepare.download", "from pdrec_jax.given import Given"),
        ("prepare.own", "from pdrec_jax.recommend import recommender"),
        ("recommend.models", "from pdrec_jax import phases"),
        ("export.artifact", "from pdrec_jax.encoders.stage import make_model"),
        ("prepare.reference", "import pickle"),
        ("data.sources", "from pdrec_jax.prepare import own"),
        ("utils", "import numpy"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, f"pdrec_jax.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("main", "from pdrec_jax import __version__, experiment"),
        ("experiment", "from pdrec_jax import phases\nfrom .report import tables"),
        ("phases", "from pdrec_jax.diffusion import stage\nfrom .encoders import stage as e"),
        ("benchmark.evaluation", "from pdrec_jax.diffusion import stage\nfrom . import contest"),
        ("encoders.stage", "from pdrec_jax.diffusion.preferences import Preferences"),
        ("encoders.stage", "from pdrec_jax.plugins import hbr\nfrom . import sasrec"),
        ("encoders.sasrec", "from pdrec_jax.diffusion import preferences"),
        ("encoders.sasrec", "from flax import nnx"),
        ("recommend.models", "from pdrec_jax.encoders import stage"),
        ("export.artifact", "from pdrec_jax.recommend.models import load_encoder"),
        ("diffusion.denoiser", "from flax import nnx"),
        ("checkpoints", "import orbax.checkpoint as ocp"),
        ("sharding", "import jax\nmesh = jax.make_mesh((2,), ('data',))"),
        ("training", "import jax\ndef f(mesh: jax.sharding.Mesh) -> None: ..."),
        ("data.readers", "def f():\n    import pyarrow.csv"),
        ("data.readers", "import typing\nif typing.TYPE_CHECKING:\n    import pyarrow"),
        ("data.readers", "import numpy\nnumpy.load('x', allow_pickle=False)"),
        ("data.splits", "from ..errors import UserError\nfrom .interactions import Interactions"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(source, f"pdrec_jax.{module}") == []


def test_a_violating_module_is_found_in_a_package_on_disk(tmp_path: Path) -> None:
    package = tmp_path / "pdrec_jax"
    (package / "plugins").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "plugins" / "__init__.py").write_text("from ..diffusion import reverse\n")
    (package / "plugins" / "nns.py").write_text("import numpy\n\nfrom . import hbr\nimport torch\n")

    assert violations_below(package) == [
        "pdrec_jax.plugins:1: may not know pdrec_jax.diffusion.reverse",
        "pdrec_jax.plugins.nns:4: torch is imported inside the function that needs it",
    ]


def test_the_package_itself_loads_nothing_heavy() -> None:
    script = "import sys, pdrec_jax; pdrec_jax.__version__; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({*LAZY, "jax", "numpy", "flax", "orbax"})


@pytest.mark.skipif(not (PACKAGE / "main.py").is_file(), reason="pdrec_jax/main.py is not written")
def test_main_starts_without_the_heavy_libraries() -> None:
    script = "import sys, pdrec_jax.main; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pdrec_jax" in loaded
    assert loaded.isdisjoint(LAZY)
