"""The stages of the benchmark in order, and where their outcome goes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from pdrec_jax.benchmark import (
    diffusion_step,
    encoder_step,
    evaluation,
    preferences,
    reverse,
    side_by_side,
    tables,
)
from pdrec_jax.benchmark.contest import (
    Comparison,
    Result,
    large_copy,
    matrix_product,
    measure,
)
from pdrec_jax.benchmark.reference import check_clone
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_config
from pdrec_jax.data import sources
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text, write_errors

# A stage yields its comparisons one by one, so that what one holds is gone before the next.
STAGES: dict[str, Callable[[Sizes, str], Iterator[Comparison]]] = {
    "reverse": reverse.comparisons,
    "encoder_step": encoder_step.comparisons,
    "diffusion_step": diffusion_step.comparisons,
    "preferences": preferences.comparisons,
    "evaluation": evaluation.comparisons,
}
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def run(
    stages: Sequence[str],
    sizes: Sizes,
    *,
    source: str,
    repeats: int | None,
    out: Path | None,
    reference: Path | None = None,
    fast: bool = False,
) -> dict[str, Any]:
    """Runs stages, and prints the table of each comparison as soon as it is done.

    Args:
      stages: names in ``STAGES``.
      sizes: of the work.
      source: ``auto``, ``real`` or ``simulated`` log.
      repeats: rounds; None for each comparison's own number.
      out: directory for ``benchmark.txt``, ``.md`` and ``.json``, which grow with each comparison.
      reference: clone of the PyTorch reference; where given, each stage runs beside it instead of
        beside its slow twin.
      fast: leave out the slow twins.

    Returns:
      what ``benchmark.json`` holds.

    Raises:
      UserError: sizes that do not go together, a log that is missing, a place that refuses files,
        a reference that is not one or fails.
    """
    # What can go wrong should do so before the first stage has taken its minutes.
    sources.find_files(make_config(sizes, source))
    if reference is not None:
        check_clone(reference)
        stages = [stage for stage in stages if stage in side_by_side.STAGES]
        if not stages:
            names = ", ".join(side_by_side.STAGES)
            raise UserError(
                f"--reference: it has no such stage; --stage=all or {names} is expected"
            )
    if out is not None:
        _prepare(out)
    ceilings = matrix_product(sizes.product), large_copy(sizes.product)
    began = describe_machine()
    results: list[Result] = []
    texts: list[str] = []
    report: dict[str, Any] = tables.as_json(results, began, sizes)
    for stage in stages:
        print(f"{stage}: preparing and timing", file=sys.stderr, flush=True)
        for comparison in _comparisons(stage, sizes, source, reference):
            if fast:
                comparison = _without_twins(comparison)
            machine = describe_machine()
            results.append(measure(comparison, repeats, *ceilings))
            texts.append(tables.text_table(results[-1], machine))
            print(texts[-1] + "\n", flush=True)
            report = tables.as_json(results, began | {"load_at_end": _load()}, sizes)
            if out is not None:
                _write(out, "txt", "\n\n".join(texts) + "\n")
                _write(out, "md", tables.markdown(results, began))
                _write(out, "json", json.dumps(report, indent=1) + "\n")
    if table := tables.speedups(results):
        print(table, flush=True)
    return report


def _comparisons(
    stage: str, sizes: Sizes, source: str, reference: Path | None
) -> Iterator[Comparison]:
    if reference is None:
        return STAGES[stage](sizes, source)
    return side_by_side.comparisons(stage, sizes, source, reference)


def _without_twins(comparison: Comparison) -> Comparison:
    """Keeps what has a twin or is none, with nothing to be compared to."""
    twins = {row.twin for row in comparison.contestants}
    kept = (
        dataclasses.replace(row, twin=None)
        for row in comparison.contestants
        if row.name not in twins
    )
    return dataclasses.replace(comparison, contestants=tuple(kept), agree=dict, agreement="")


def describe_machine() -> dict[str, Any]:
    """Returns device, processors, load of the last minute (None where unknown) and versions."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    devices = jax.devices()
    return {
        "device": f"{devices[0].device_kind} x{len(devices)}",
        "platform": f"{platform.system()} {platform.machine()}",
        "processors": _processors(),
        "load": _load(),
        "versions": {"python": platform.python_version(), **versions},
    }


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _prepare(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: a directory is expected")
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _write(out: Path, ending: str, text: str) -> None:
    atomic_write_text(out / f"benchmark.{ending}", text)
