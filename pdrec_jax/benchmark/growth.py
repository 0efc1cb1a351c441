"""How time and memory of each stage grow with users or items: a power of the size, fitted.

python -m pdrec_jax.benchmark.growth --along=items --sizes=10000,100000 [--hidden=64] [--out=DIR]

Every size is timed by a process of its own, on a simulated log, the fast paths alone; what the
command does not know itself goes to ``pdrec_jax.benchmark``. A size that fails (by its memory, say)
leaves an empty place.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdrec_jax.benchmark.__main__ import STAGES
from pdrec_jax.command import MISTAKE, Parser, answered, leave, some_path
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text, write_errors
from pdrec_jax.report.tables import markdown_rows

# Of a row: seconds a unit and the peak of the process, by size.
Growth = dict[str, dict[int, dict[str, float]]]


def exponent(points: Mapping[int, float]) -> float | None:
    """Fits ``value = c size^e`` by least squares of the logarithms, and returns e.

    Args:
      points: positive values by size; None comes of fewer than two.
    """
    pairs = [(math.log(size), math.log(value)) for size, value in points.items() if value > 0]
    if len(pairs) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread


def collect(growth: Growth, size: int, report: dict[str, Any]) -> None:
    """Adds what ``benchmark.json`` says of one size.

    Args:
      growth: is added to.
      size: of the run.
      report: the file's content.
    """
    for comparison in report["comparisons"]:
        for row in comparison["rows"]:
            title, _, _ = comparison["title"].partition(", ")
            parts = [*_without_sizes(title), *_without_sizes(row["name"])]
            name = f"{comparison['stage']}: {', '.join(parts)}, a {comparison['unit']}"
            growth.setdefault(name, {})[size] = {
                "seconds": row["per_unit"]["median"],
                "bytes": row["peak_bytes"],
            }


def _without_sizes(text: str) -> list[str]:
    """The parts of a name that stay the same whatever the size: none that begin with a number."""
    return [part for part in text.split(", ") if not part[:1].isdigit()]


def table(growth: Growth, along: str, sizes: Sequence[int]) -> str:
    """Lays the outcome out as Markdown: ms a unit and MiB at each size, and the exponents.

    Args:
      growth: from ``collect``.
      along: ``items`` or ``users``.
      sizes: in order.
    """
    head = [f"by {along}", *(f"{size:,}" for size in sizes), "time ~", "memory ~"]
    rows = []
    for name, found in growth.items():
        cells = [
            f"{1e3 * found[size]['seconds']:,.3g} ms, {found[size]['bytes'] / 2**20:,.0f} MiB"
            if size in found
            else ""
            for size in sizes
        ]
        powers = [
            exponent({size: values[kind] for size, values in found.items()})
            for kind in ("seconds", "bytes")
        ]
        shown = ["" if power is None else f"{along}^{power:.2f}" for power in powers]
        rows.append([name, *cells, *shown])
    return markdown_rows(head, rows)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or min(sizes) < 1 or sizes != sorted(set(sizes)):
        raise UserError(
            f"--sizes: two or more rising whole numbers with commas are expected, got {text!r}"
        )
    return sizes


def measure(along: str, sizes: Sequence[int], stages: Sequence[str], rest: Sequence[str]) -> Growth:
    """Times each stage at each size.

    Args:
      along: ``items`` or ``users``.
      sizes: in order.
      stages: of the benchmark.
      rest: further arguments of ``pdrec_jax.benchmark``.

    Raises:
      UserError: the benchmark refuses an argument.
    """
    growth: Growth = {}
    for size in sizes:
        for stage in stages:
            print(f"{stage} at {size:,} {along}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as out:
                words = [f"--{along}={size}", f"--stage={stage}", "--data=simulated", "--fast"]
                done = subprocess.run(
                    [sys.executable, "-m", "pdrec_jax.benchmark", *words, f"--out={out}", *rest],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                )
                full = "error: out of memory" in done.stderr
                if done.returncode == MISTAKE and not full:
                    raise UserError(done.stderr.strip().rpartition("error: ")[2])
                if done.returncode != 0:
                    print(f"{stage} at {size:,} {along}: failed", file=sys.stderr, flush=True)
                    continue
                collect(growth, size, json.loads((Path(out) / "benchmark.json").read_text()))
    return growth


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.

    Returns:
      the exit status, see ``command.answered``.
    """
    parser = Parser(
        prog="python -m pdrec_jax.benchmark.growth", allow_abbrev=False, description=__doc__
    )
    parser.add_argument("--along", choices=("items", "users"), required=True)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="rising, with commas")
    parser.add_argument("--stages", default=",".join(STAGES), help="of the benchmark, with commas")
    parser.add_argument(
        "--out", type=some_path, metavar="DIR", help="write growth.md and .json there"
    )

    def work() -> None:
        given, rest = parser.parse_known_args(arguments)
        sizes, stages = _sizes(given.sizes), given.stages.split(",")
        growth = measure(given.along, sizes, stages, rest)
        text = table(growth, given.along, sizes)
        print(text)
        if given.out is not None:
            with write_errors(given.out):
                given.out.mkdir(parents=True, exist_ok=True)
            atomic_write_text(given.out / "growth.md", text + "\n")
            atomic_write_text(given.out / "growth.json", json.dumps(growth, indent=1) + "\n")

    return answered(work, "the same command begins anew")


if __name__ == "__main__":
    leave(main())
