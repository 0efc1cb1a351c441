"""Compares models of different runs, user by user.

python -m pdrec_jax.compare BASE RUN [RUN ..]

BASE and RUN are workdirs of finished runs, of one seed or several, with ``:KEY`` behind where a run
has several models: ``runs/tuned:sasrec+nns``. The runs must have ranked the same users among the
same candidates; they may differ in anything else, such as the settings of a base and of a variant
that were tuned each for itself. What is compared are the finished seeds that all of them have.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.command import Parser, answered, leave, some_path
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.groups import by_group
from pdrec_jax.evaluation.over_seeds import BLOCKS, METRICS, comparisons, over_seeds
from pdrec_jax.files import atomic_write_text, require_not_within, write_errors
from pdrec_jax.report.groups import markdown_groups
from pdrec_jax.report.seeds import markdown_comparisons, seeds_table, with_deviations
from pdrec_jax.report.tables import markdown_table, source_line, title
from pdrec_jax.settings import get
from pdrec_jax.workdir import CONFIG, Workdir, seed_folder

_FILE = "comparison"
# What decides who is ranked among which candidates, beside the log itself.
_SAME = ("protocol", "evaluation.negatives", "data.mixed")
_USERS = ("users", "history_length", "item_popularity")  # the last is not kept by older runs


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model of a run.

    Attributes:
      given: as the command line names it.
      name: for tables.
      path: of the run.
      key: of the model within it.
      seeds: the run of each seed that is finished.
      missing: its other seeds.
    """

    given: str
    name: str
    path: Path
    key: str
    seeds: dict[int, Workdir]
    missing: tuple[int, ...] = ()


def find(given: str) -> Candidate:
    """Finds a model by ``RUN`` or ``RUN:KEY``.

    Args:
      given: as above; KEY may be left out where the run has one model, or one encoder.

    Raises:
      UserError: there is no such run or model, no seed of it is finished, or a seed's folder holds
        another run.
    """
    path, _, key = given.rpartition(":")
    if not path or Path(given).is_dir():
        path, key = given, ""
    place = Workdir.open(path, several=True)
    first, several = place.config.seed, place.config.seeds > 1
    numbers = range(first, first + place.config.seeds)
    folders = {seed: place.path / seed_folder(seed) if several else place.path for seed in numbers}
    seeds = {
        seed: run
        for seed, folder in folders.items()
        if (folder / CONFIG).is_file()
        and (run := place.seed_run(seed) if several else place).results() is not None
    }
    if not seeds:
        which = "one of its seeds" if several else f"seed {first} of a finished run"
        raise UserError(f"{place.path}: not finished; {which} is expected")
    # A seed that is still trained has results of its first models.
    models = {key: model for run in seeds.values() for key, model in _models(run).items()}
    if not key:
        encoders = [name for name, model in models.items() if model.get("stage") == "encoder"]
        fit = encoders or list(models)
        if len(fit) != 1:
            raise UserError(f"{given}: name one of its models, as in {path}:{list(models)[-1]}")
        (key,) = fit
    if key not in models:
        raise UserError(f"{given}: no model {key!r}; there are {', '.join(models)}")
    seeds = {seed: run for seed, run in seeds.items() if key in _models(run)}
    missing = tuple(seed for seed in numbers if seed not in seeds)
    name = f"{place.path.resolve().name}: {models[key]['name']}"
    return Candidate(given, name, place.path, key, seeds, missing)


def _told_apart(everyone: Sequence[Candidate]) -> list[Candidate]:
    """Names models as the command line does where the names of their folders are the same."""
    names = collections.Counter(each.name for each in everyone)
    return [
        dataclasses.replace(each, name=each.given) if names[each.name] > 1 else each
        for each in everyone
    ]


def _models(place: Workdir) -> dict[str, Any]:
    """The models of a finished run by their keys, each with a name; at least one."""
    with place.reading_results():
        found = (place.results() or {})["models"]
        models = {str(model["key"]): _model(model) for model in found}
    if not models:
        raise UserError(f"{place.path}: no model was trained in this run")
    return models


def _model(found: dict[str, Any]) -> dict[str, Any]:
    """A model of the results, with what a table shows beside its metrics in the form expected."""
    users, paper = found.get("users"), found.get("paper") or {}
    return {
        **found,
        "name": str(found["name"]),
        "users": None if users is None else int(users),
        "paper": {metric: float(value) for metric, value in paper.items()},
    }


def compare_runs(
    base: Candidate, others: Sequence[Candidate], metrics: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Compares models with a base over the seeds that all have.

    Args:
      base: what the others are compared with.
      others: at least one.
      metrics: see ``over_seeds.comparisons``; all of them are one family.

    Returns:
      results in the form of those of several seeds.

    Raises:
      UserError: no common seed, other users or candidates, or a model that is named twice.
    """
    _require_different([base, *others])
    everyone = _told_apart([base, *others])
    base, *others = everyone
    seeds = sorted(set.intersection(*(set(each.seeds) for each in everyone)))
    if not seeds:
        raise UserError(
            "no seed is common to all: "
            + ", ".join(f"{each.given} has {_listed(each.seeds)}" for each in everyone)
        )
    for seed in seeds:
        if seed != seeds[0]:
            require_alike(base.seeds[seeds[0]], base.seeds[seed])
        for other in others:
            require_alike(base.seeds[seed], other.seeds[seed])
    ranks, models = {}, []
    for each in everyone:
        arrays = [each.seeds[seed].per_user() for seed in seeds]
        for block in BLOCKS:
            name = f"{each.key}/{block}_rank"
            if not all(name in one for one in arrays):
                raise UserError(f"{each.given}: no {block} ranks in per_user.npz")
            ranks[f"{each.given}/{block}_rank"] = np.stack([one[name] for one in arrays])
        found = [[_models(each.seeds[seed])[each.key]] for seed in seeds]
        with each.seeds[seeds[0]].reading_results():
            (mean,) = over_seeds(found)
        if len(seeds) == 1:
            del mean["deviation"]
        models.append({**mean, "key": each.given, "name": each.name})
    first = base.seeds[seeds[0]]
    pairs = [(other.given, base.given) for other in others]
    negatives = first.config.evaluation.negatives
    return {
        "name": first.config.name,
        "protocol": first.config.protocol,
        "seed": seeds[0],
        **({"seeds": seeds} if len(seeds) > 1 else {}),
        "negatives": negatives,
        "data": first.data,
        "models": models,
        "comparisons": comparisons(pairs, ranks, negatives, metrics=metrics, seed=seeds[0]),
        "groups": by_group(models, ranks, first.per_user(), pairs),
        "notes": [
            *[
                f"{each.given}: left out, not finished: seeds {_listed(each.missing)}"
                for each in everyone
                if each.missing
            ],
            *[note for pair in pairs if (note := _other_users(*pair, ranks))],
        ],
    }


def _other_users(model: str, base: str, ranks: dict[str, np.ndarray]) -> str:
    """What is to be said where a model and its base ranked different users; empty otherwise."""
    ranked = [~np.isnan(ranks[f"{name}/sampled_rank"]).any(axis=0) for name in (model, base)]
    if np.array_equal(*ranked):
        return ""
    both = int(np.sum(ranked[0] & ranked[1]))
    return f"{model} and {base} ranked different users: gains are over the {both:,} of both"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _require_different(everyone: Sequence[Candidate]) -> None:
    """Checks that no model counts twice, under whatever names: p-values are corrected for all."""
    known: dict[tuple[Path, str], str] = {}
    for each in everyone:
        of_seeds = {(run.path.resolve(), each.key) for run in each.seeds.values()}
        for twice in of_seeds & known.keys():
            raise UserError(f"a model is named twice: {known[twice]} and {each.given}")
        known |= dict.fromkeys(of_seeds, each.given)


def require_alike(one: Workdir, other: Workdir) -> None:
    """Checks that two runs ranked the same users among the same candidates.

    Raises:
      UserError: they did not, or have no ranks.
    """
    for field in _SAME:
        ours, theirs = (get(place.config, field) for place in (one, other))
        if ours != theirs:
            raise UserError(
                f"{other.path}: config.{field} is {theirs!r}, and {ours!r} in {one.path}; models "
                "that rank the same users among the same candidates can be compared"
            )
    ours, theirs = one.per_user(), other.per_user()
    for place, arrays in ((one, ours), (other, theirs)):
        kinds = {name: "biufU" if name == "users" else "biuf" for name in arrays}
        flat = all(a.ndim == 1 and a.dtype.kind in kinds[name] for name, a in arrays.items())
        if not flat or "users" not in arrays or len({len(a) for a in arrays.values()}) > 1:
            raise UserError(f"{place.path}: ranks of all users are expected in per_user.npz")
    same = {
        name: np.array_equal(ours[name], theirs[name])
        for name in _USERS
        if name in ours and name in theirs
    }
    logs = [[file["sha256"] for file in place.data["files"]] for place in (one, other)]
    if logs[0] != logs[1] or not all(same.values()):
        raise UserError(f"{other.path}: a run on the log of {one.path} is expected")


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(METRICS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"some of {', '.join(METRICS)} are expected: {text!r}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.compare",
        description="Compares models of different runs, user by user.",
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="workdir of a finished run, or RUN:MODEL")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="likewise; compared with BASE")
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=METRICS,
        help="with commas; choose them before you look: p-values are corrected for those alone",
    )
    parser.add_argument(
        "--out", type=some_path, metavar="DIR", help=f"write {_FILE}.md and .json there"
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
        base, *others = map(find, [arguments.base, *arguments.runs])
        if arguments.out is not None:
            require_place(arguments.out, [each.path for each in (base, *others)])
        results = compare_runs(base, others, arguments.metrics)
        page = _page(results)
        show(results)
        if arguments.out is not None:
            _write(arguments.out, page, results)

    return answered(work, "nothing was written")


def show(results: dict[str, Any]) -> None:
    """Prints the results of ``compare_runs``."""
    print(seeds_table(results))
    for note in results["notes"]:
        print(note)


def _page(results: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    sections = [
        f"# {title(results)}",
        *_of_seeds(results),
        markdown_table({**results, "models": with_deviations(results)}),
        *markdown_comparisons(results),
        *results["notes"],
        *filter(None, [markdown_groups(results)]),
        f"**{source_line(results)}**",
    ]
    return "\n\n".join(sections) + "\n"


def _of_seeds(results: dict[str, Any]) -> list[str]:
    """What the figures are, where they are of several seeds."""
    seeds = results.get("seeds")
    return [f"Mean and standard deviation over {len(seeds)} seeds."] if seeds else []


def require_place(out: Path, runs: Sequence[Path]) -> None:
    """Checks that a directory is there or can be made, before the work; it makes none.

    Raises:
      UserError: something else has its name, it cannot be written to, or it is within a run.
    """
    for run in runs:
        require_not_within("--out", out, run)
    with write_errors(out):
        there = out
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise UserError(f"--out: {out}: a directory is expected, and {there} is none")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"--out: {out}: cannot write ({there} is not writable)")


def _write(out: Path, page: str, results: dict[str, Any]) -> None:
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / f"{_FILE}.md", page)
    atomic_write_text(out / f"{_FILE}.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
