"""Keeps what can be compared of finished runs, without their models.

python -m pdrec_jax.keep RUN [RUN ..] --out=DIR

RUN is the workdir of a finished run, of one seed or several, or a folder that has some below it,
such as that of ``reproduce``. Kept are the config, the checksums of the data, the results, the
ranks of every user and the curves of training. ``compare`` and ``reproduce`` read that as they read
the run itself; what needs a model, such as ``recommend``, or the preferences, needs the run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax import metric_log
from pdrec_jax.command import Parser, answered, leave, some_path
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_savez_compressed, atomic_write_bytes, write_errors
from pdrec_jax.workdir import CONFIG, PER_USER, Workdir, seed_folder

_RANKINGS = ("sampled", "full")  # of every model


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What is kept of one workdir, read and found whole.

    Attributes:
      run: the workdir.
      out: of the copy.
      results: of the run.
      arrays: per user; none of several seeds, which have their own.
      curves: of the training.
    """

    run: Workdir
    out: Path
    results: dict[str, Any]
    arrays: dict[str, np.ndarray]
    curves: bytes


def _read(run: Workdir, out: Path) -> list[_Kept]:
    """Reads what is kept of a run; of several seeds also of the run of each, behind it.

    Raises:
      UserError: the run is not finished, or something of it is missing or damaged.
    """
    config, several = run.config, run.config.seeds > 1
    results, arrays, curves = run.results(), run.per_user(), run.path / metric_log.FILE
    if results is None or not _covers(run, results):
        raise UserError(f"{run.path}: a finished run is expected")
    if not several:
        with run.reading_results():
            keys = [str(model["key"]) for model in results["models"]]
        ranks = [f"{key}/{block}_rank" for key in keys for block in _RANKINGS]
        shapes = {arrays[name].shape for name in ["users", *ranks] if name in arrays}
        if not keys or not arrays.keys() >= {"users", *ranks} or len(shapes) > 1:
            raise UserError(f"{run.path}: ranks of all users are expected in {PER_USER}")
    text = curves.read_bytes() if curves.is_file() else b""
    kept = [_Kept(run, out, results, arrays, text)]
    if several:
        for seed in range(config.seed, config.seed + config.seeds):
            name = seed_folder(seed)
            kept += _read(run.seed_run(seed), out / name)
    return kept


def _covers(run: Workdir, results: dict[str, Any]) -> bool:
    """Whether the results are of all seeds that the run was last asked for."""
    config = run.config
    numbers = list(range(config.seed, config.seed + config.seeds))
    return config.seeds == 1 or results.get("seeds") == numbers


def _require_free(kept: _Kept) -> Workdir:
    """Opens the place of a copy.

    Raises:
      UserError: it has another run, the run itself, one with models, or one of more seeds, or
        another process is at work in it.
    """
    run, out = kept.run, kept.out
    if out.resolve() == run.path.resolve() or any(out.glob("phases/*.json")):
        raise UserError(f"--out: {out} holds the run itself; name another folder")
    place = Workdir(out, run.config, run.data["source"], flag="--out")
    place.require_log(run.data["files"])
    place.require_unlocked()
    return place


def keep(runs: Sequence[tuple[Workdir, Path]]) -> None:
    """Copies what is kept of runs; nothing is written where anything is wrong with one of them.

    Args:
      runs: finished runs and the places of their copies, made if missing; what an earlier call has
        kept of the same run is replaced.

    Raises:
      UserError: a run is not finished or damaged, a place is taken, or cannot be written.
    """
    found = [_read(run, out) for run, out in runs]
    places = [[_require_free(kept) for kept in parts] for parts in found]
    for parts, copies in zip(found, places, strict=True):
        with contextlib.ExitStack() as stack:
            # The whole run first: a folder of seeds without its config is no run.
            for kept, copy in zip(parts, copies, strict=True):
                stack.enter_context(copy.held(kept.run.data))
            # What an earlier call has kept is no finished run while it is replaced.
            for kept, copy in zip(parts, copies, strict=True):
                copy.reopen()
                if not kept.curves:
                    with write_errors(kept.out):
                        (kept.out / metric_log.FILE).unlink(missing_ok=True)
            for kept, copy in reversed(list(zip(parts, copies, strict=True))):
                if kept.curves:
                    atomic_write_bytes(kept.out / metric_log.FILE, kept.curves)
                if kept.arrays:
                    atomic_savez_compressed(kept.out / PER_USER, **kept.arrays)
                copy.finish(kept.results)


def _found(given: Path, out: Path) -> Iterator[tuple[Workdir, Path]]:
    """The finished runs of a path, each with its place below ``out``.

    Raises:
      UserError: ``out`` lies in a run.
    """
    if (given / CONFIG).is_file():
        if out.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--out: {out} lies in {given}; name another folder")
        yield Workdir.open(given, several=True), out / given.resolve().name
        return
    inside: list[Path] = []  # a run's seeds are runs below it
    for path in sorted(config.parent for config in given.rglob(CONFIG)):
        if any(path.is_relative_to(run) for run in inside):
            continue
        if path.resolve().is_relative_to(out.resolve()):
            continue
        inside.append(path)
        try:
            run = Workdir.open(path, several=True)
            results = run.results()
            finished = results is not None and _covers(run, results)
        except UserError as error:
            print(f"{error}; left out", flush=True)
            continue
        if finished:
            yield run, out / path.relative_to(given)
        else:
            print(f"{path}: not finished, left out", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.keep",
        description="Keeps what can be compared of finished runs, without their models.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=some_path, help="workdir, or some below"
    )
    parser.add_argument(
        "--out", type=some_path, required=True, metavar="DIR", help="keep them there"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments, without the program's name; those of the process where not given.

    Returns:
      the exit status, see ``command.answered``.
    """

    def work() -> None:
        arguments = _parser().parse_args(argv)
        places: dict[Path, Workdir] = {}
        for given in arguments.runs:
            found = list(_found(given, arguments.out))
            if not found:
                raise UserError(f"{given}: no finished run is there or below")
            for run, out in found:
                if out in places:
                    raise UserError(f"{run.path} and {places[out].path} would both be {out}")
                places[out] = run
        keep([(run, out) for out, run in places.items()])
        for out in places:
            print(out, flush=True)

    return answered(work, "the same command begins anew")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
