"""Keeps what can be compared of finished runs, without their models.

python -m pdrec_jax.keep RUN [RUN ..] --out=DIR

RUN is the workdir of a finished run, of one seed or several, or a folder that has some below it,
such as that of ``reproduce``. Kept are the config, the checksums of the data, the results, the
ranks of every user and the curves of training. ``compare`` and ``reproduce`` read that as they read
the run itself; what needs a model, such as ``recommend``, or the preferences, needs the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pdrec_jax.command import Parser, answered, leave
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_savez_compressed, atomic_write_bytes
from pdrec_jax.workdir import CONFIG, PER_USER, Workdir, seed_folder

_CURVES = "metrics.jsonl"


def keep(run: Workdir, out: Path) -> None:
    """Copies what is kept of a run; of several seeds also of the run of each.

    Args:
      run: finished.
      out: made if missing; what an earlier call has kept of the same run is replaced.

    Raises:
      UserError: the run is not finished, ``out`` holds another one or this very run, or it cannot
        be written.
    """
    parts = [(run, out)]
    if run.config.seeds > 1:
        first = run.config.seed
        folders = [seed_folder(seed) for seed in range(first, first + run.config.seeds)]
        parts += [(Workdir.open(run.path / name), out / name) for name in folders]
    for part, _ in parts:
        if part.results() is None:
            raise UserError(f"{part.path}: a finished run is expected")
    copies = []
    for part, place in parts:  # the whole first: a folder of seeds without its config is no run
        if place.exists() and place.samefile(part.path):
            raise UserError(f"--out: {place} would be the run itself; name another folder")
        copies.append(Workdir(place, part.config, part.data["source"], flag="--out"))
        copies[-1].begin(part.data)
    for (part, place), copy in reversed(list(zip(parts, copies, strict=True))):
        curves = part.path / _CURVES
        if curves.is_file():
            atomic_write_bytes(place / _CURVES, curves.read_bytes())
        if arrays := part.per_user():
            atomic_savez_compressed(place / PER_USER, **arrays)
        copy.finish(part.results() or {})


def _found(given: Path) -> Iterator[tuple[Workdir, Path]]:
    """The finished runs of a path, each with its place below ``--out``."""
    if (given / CONFIG).is_file():
        yield Workdir.open(given, several=True), Path(given.resolve().name)
        return
    inside: list[Path] = []  # a run's seeds are runs below it
    for path in sorted(config.parent for config in given.rglob(CONFIG)):
        if any(path.is_relative_to(run) for run in inside):
            continue
        inside.append(path)
        run = Workdir.open(path, several=True)
        if run.results() is None:
            print(f"{path}: not finished, left out", flush=True)
        else:
            yield run, path.relative_to(given)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.keep",
        description="Keeps what can be compared of finished runs, without their models.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="workdir, or some below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="keep them there")
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
            found = list(_found(given))
            if not found:
                raise UserError(f"{given}: no finished run is there or below")
            for run, name in found:
                if name in places:
                    raise UserError(f"{run.path} and {places[name].path} would both be {name}")
                places[name] = run
        for name, run in places.items():
            keep(run, arguments.out / name)
            print(arguments.out / name, flush=True)

    return answered(work, "the same command begins anew")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
