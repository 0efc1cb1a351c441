"""Command line of the reproduction.

python -m pdrec_jax.reproduce --table=1 --datasets=toy,game --seeds=5 --protocol=reference,strict
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdrec_jax.command import Parser, answered, leave, some_path
from pdrec_jax.errors import UserError
from pdrec_jax.main import parse
from pdrec_jax.settings import FIELDS, FREE_FIELDS, get, misfit, require_field

if TYPE_CHECKING:
    from pdrec_jax.reproduce.plan import Job, Setting
    from pdrec_jax.reproduce.targets import Target

_DATASETS = ("toy", "game", "book", "music")
# What is said of a table as a whole, in its title and its folder.
_OF_A_TABLE = {
    "protocol": "--protocol=strict,reference makes a table of each",
    "seed": "--config.seed=N makes the tables of another one",
    "seeds": "--seeds=S makes the tables of so many",
}
# What each run of a table or figure has its own value of; a sweep keeps the last two.
_OF_A_RUN = {
    "stage": "each run has its own",
    "preferences_from": "the runs' own diffusion models fill the preferences",
    "diffusion_from": "the runs' own diffusion models are trained",
    "diffusion.both": "both models are trained",
    "encoder.name": "--encoders=NAME,.. chooses them",
    "encoder.variants": "each encoder has those of the paper; a --sweep can have others",
}
_OF_A_SWEEP = ("encoder.name", "encoder.variants")
_METRIC = "N@10"  # of a figure
_LONGEST = 60  # letters of a sweep's values in a file's name
_LONGEST_NAME = 180  # of the file itself, beside what a file being written is called
_UNSWEPT = ("name", "preferences_from", "diffusion_from")
_PAIRS = ("toy_game", "game_toy", "book_music", "music_book")  # of Table 3


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"different names joined by commas are expected: {text!r}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.reproduce",
        description="Runs what a table or figure of the paper lacks, and writes it.",
        epilog="Any --config.FIELD=VALUE of pdrec_jax.main holds for all runs.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", choices=("1", "2", "3"))
    what.add_argument("--figure", choices=("4", "5"))
    what.add_argument(
        "--sweep", metavar="FIELD=V1,V2,..", help="all plugins, a run for each value of a field"
    )
    parser.add_argument(
        "--datasets",
        type=_names,
        help="config files, with a variant behind a colon (toy:readme), by default "
        f"{', '.join(_DATASETS)}, for Table 3 {', '.join(_PAIRS)}",
    )
    parser.add_argument(
        "--encoders",
        type=_names,
        help="by default all of the paper's; of a sweep and Figure 5 the config's",
    )
    parser.add_argument("--seeds", metavar="S", help="as --config.seeds")
    parser.add_argument(
        "--share-diffusion",
        action="store_true",
        help="train the diffusion models for the first seed only, and all seeds' encoders on them",
    )
    parser.add_argument(
        "--protocol", type=_names, help="as --config.protocol, or both with a comma"
    )
    parser.add_argument("--metric", help="what a figure shows, N@10 by default")
    parser.add_argument("--configs", type=some_path, default=Path("configs"), metavar="DIR")
    parser.add_argument("--out", type=some_path, default=Path("runs/reproduce"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments, without the program's name; those of the process where not given.

    Returns:
      the exit status, see ``command.answered``.
    """
    return answered(
        lambda: _run(*_parser().parse_known_args(sys.argv[1:] if argv is None else argv)),
        "the same command resumes the runs",
    )


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from pdrec_jax.encoders import registry

    _check(arguments, rest)
    groups = _settings(arguments, rest)
    target = _target(arguments)
    from pdrec_jax.experiment import run
    from pdrec_jax.reproduce import figures

    metric = _metric(arguments, target)
    jobs = []
    for settings in groups:
        for setting in settings:
            registry.put_back(setting.encoders)
            for job in target.jobs(setting):
                job.check()  # what is wrong with any of them is said before the first one runs
                jobs.append((job, setting, settings))
    if arguments.dry_run:
        _tell([job for job, *_ in jobs])
        return
    if target.drawn:
        figures.require_matplotlib()
    # A table without a figure is not written before a run of it may fail.
    begun = {setting.config.protocol for job, setting, _ in jobs if job.results is not None}
    for settings in groups:
        if settings[0].config.protocol in begun:
            _write(target, settings, arguments, metric)
    for number, (job, setting, settings) in enumerate(jobs):
        if job.results is None:
            print(f"({number + 1} of {len(jobs)}) {job.what}", flush=True)
            registry.put_back(setting.encoders)
            run(job.config, job.by_hand, str(job.workdir))
            _write(target, settings, arguments, metric)
    for settings in groups:
        for path in _write(target, settings, arguments, metric):
            print(path)


def _settings(arguments: argparse.Namespace, rest: Sequence[str]) -> list[list[Setting]]:
    """Reads the configs, a list a protocol: figures of two protocols do not belong into one table.

    Raises:
      UserError: two of them would share a folder, or one is of no use for the table.
    """
    from pdrec_jax.encoders import registry

    flags = list(rest)
    flags += [] if arguments.seeds is None else [f"--config.seeds={arguments.seeds}"]
    names = arguments.datasets or (_PAIRS if arguments.table == "3" else _DATASETS)
    before = registry.registered()

    def read(name: str, own: Sequence[str] = ()) -> Setting:
        registry.put_back(before)  # what another config has registered is not this one's
        return _setting(name, arguments, [*flags, *own])

    groups = [
        [read(name, own) for name in names]
        for own in ([f"--config.protocol={each}"] for each in arguments.protocol or ())
    ] or [[read(name) for name in names]]

    folders = collections.Counter(setting.dataset for setting in groups[0])
    for setting in groups[0]:
        if folders[setting.dataset] > 1:
            raise UserError(
                f"--datasets: {setting.path} and another one would share the folder "
                f"{setting.dataset}-..; give one of them another name"
            )
        domains, table = ("two domains", "3") if setting.config.data.mixed else ("one domain", "1")
        if arguments.table in ("1", "3") and arguments.table != table:
            raise UserError(
                f"--datasets: {setting.path} is of {domains}; --table={table} is its table"
            )
    return groups


def _metric(arguments: argparse.Namespace, target: Target) -> str:
    """The metric of a figure; a table has all of them."""
    from pdrec_jax.reproduce.targets import METRICS

    metric = _METRIC if arguments.metric is None else arguments.metric
    if metric not in METRICS:
        raise UserError(f"--metric: one of {', '.join(METRICS)} is expected")
    if arguments.metric is not None and not target.drawn:
        raise UserError("--metric: a table has all of them; leave it out")
    return metric


def _check(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuses what is not of this command, and fields that would be said twice.

    Raises:
      UserError: the first of them.
    """
    sweep = arguments.sweep is not None or arguments.figure == "5"
    swept = (arguments.sweep or "").partition("=")[0]
    of_a_sweep = _OF_A_SWEEP[1:] if arguments.encoders else _OF_A_SWEEP
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(f"unexpected argument {argument!r}")
        field = argument.removeprefix("--config.").partition("=")[0]
        if field in _OF_A_RUN and not (sweep and field in of_a_sweep):
            raise UserError(f"--config.{field}: {_OF_A_RUN[field]}; leave it out")
        if field == swept:
            raise UserError(f"--config.{field}: --sweep has its values; leave it out")
        if (field, swept) == ("dpa.drawn", "dpa.fine"):
            raise UserError(
                "--config.dpa.drawn: a sweep of dpa.fine has 0, for drawn candidates are no picks; "
                "leave it out"
            )
        if field in ("seeds", "protocol") and getattr(arguments, field) is not None:
            raise UserError(f"--config.{field}: --{field} says it already; leave one out")


def _setting(name: str, arguments: argparse.Namespace, flags: Sequence[str]) -> Setting:
    from pdrec_jax.data.sources import adopt, validated
    from pdrec_jax.reproduce.plan import Setting

    file, colon, argument = name.partition(":")
    path = f"{arguments.configs / file}.py{colon}{argument}"
    command = parse(["reproduce", f"--config={path}", *flags])
    config, by_hand = command.config, set(command.by_hand)
    if "data.source" not in by_hand:
        config.data.source = "real"  # a table of the paper is no place for a simulated log
    validated(config, by_hand)
    config = adopt(config, by_hand)
    safe = "".join(c if c.isalnum() or c in ".-_" else "-" for c in name)
    return Setting(safe, path, config, by_hand, arguments.out, arguments.share_diffusion)


def _target(arguments: argparse.Namespace) -> Target:
    from pdrec_jax.reproduce import targets
    from pdrec_jax.reproduce.plan import known_encoders

    encoders = known_encoders(arguments.encoders)
    asked = encoders if arguments.encoders else ()
    if arguments.sweep is not None:
        field, values = _values(arguments.sweep)
        if asked and field == "encoder.name":
            raise UserError("--encoders: none is expected with a sweep of encoder.name itself")
        name = f"sweep-{field}={_swept(values)}"
        return targets.sweep(name, f"Sweep of {field}", {field: values}, asked)
    if arguments.figure:
        if arguments.figure == "4":
            return targets.ablation(encoders)
        return targets.sweep("figure5", "Figure 5", encoders=asked)
    if arguments.table == "2":
        if asked:
            raise UserError("--encoders: none is expected with --table=2, which trains nothing")
        if arguments.share_diffusion:
            raise UserError("--share-diffusion: --table=2 trains nothing; leave it out")
        return targets.statistics()
    return targets.main_table(int(arguments.table), encoders)


def _swept(values: Sequence[Any]) -> str:
    """Values as part of a file's name: of many the first, the last, their number and a hash."""
    from pdrec_jax.reproduce.plan import slug

    texts = [slug(value) for value in values]
    text = ",".join(texts)
    if len(text) <= _LONGEST:
        return text
    whole = hashlib.sha256(repr(tuple(values)).encode()).hexdigest()
    return f"{texts[0]}..{texts[-1]}-{len(texts)}values-{whole[:6]}"


def _values(text: str) -> tuple[str, tuple[Any, ...]]:
    """Reads ``FIELD=V1,V2``."""
    from pdrec_jax.reproduce.plan import slug

    field, equals, listed = text.partition("=")
    if not equals or not listed:
        raise UserError(f"--sweep: FIELD=V1,V2,.. is expected, got {text!r}")
    require_field(field)
    if field in _OF_A_TABLE:
        raise UserError(f"--sweep: {field} is one of a whole table; {_OF_A_TABLE[field]}")
    if field in _UNSWEPT or field in FREE_FIELDS:
        raise UserError(f"--sweep: {field} changes no figure of a run, or is the runs' own")
    kind = type(FIELDS[field].default)
    try:
        found = ast.literal_eval(f"({listed},)") if kind is not str else tuple(listed.split(","))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"--sweep: {FIELDS[field].expected} is expected, got {listed!r}") from error
    for value in found:
        if not FIELDS[field].fits(value):
            raise misfit(field, value)
    values = tuple(float(value) if kind is float else value for value in found)
    texts = collections.Counter(map(slug, values))
    for value in values:
        if texts[slug(value)] > 1:
            raise UserError(f"--sweep: different values are expected, {value!r} is there twice")
    return field, values


def _tell(jobs: Sequence[Job]) -> None:
    for job in jobs:
        flags = []
        for field in sorted({"data.source", *job.by_hand}):
            value = get(job.config, field)
            flags.append(f"--config.{field}={value if isinstance(value, str) else repr(value)}")
        command = ["python", "-m", "pdrec_jax.main", f"--config={job.path}"]
        line = shlex.join([*command, f"--workdir={job.workdir}", *flags])
        print(f"{job.state:8} {job.what}\n    {line}")
    left = sum(job.state != "finished" for job in jobs)
    print(f"{left} of {len(jobs)} runs are left")


def _write(
    target: Target, settings: Sequence[Setting], arguments: argparse.Namespace, metric: str
) -> list[Path]:
    from pdrec_jax.reproduce import cells, figures

    table = target.table(settings)
    folder = arguments.out / f"{settings[0].config.protocol}"
    name = _file_name(target, settings, arguments, metric)
    files = cells.write(table, folder, name)
    if target.drawn:
        files += figures.draw(table, metric, folder, name)
    return files


def _file_name(
    target: Target, settings: Sequence[Setting], arguments: argparse.Namespace, metric: str
) -> str:
    """Names files by what was asked for, so that no other command's table takes their place."""
    from pdrec_jax.reproduce.plan import cut, slug

    parts = [target.name]
    parts += [setting.dataset for setting in settings if arguments.datasets]
    parts += arguments.encoders or ()
    seed, seeds = settings[0].config.seed, settings[0].config.seeds
    parts += [f"from-seed{seed}"] * (seed != 0)
    parts += [f"{seeds}seeds"] * (seeds > 1)
    parts += [slug(metric)] * (metric != _METRIC)
    return cut("-".join(parts), _LONGEST_NAME)


if __name__ == "__main__":
    leave(main())
