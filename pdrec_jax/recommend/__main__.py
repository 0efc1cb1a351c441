"""Command line that recommends with a trained run.

python -m pdrec_jax.recommend --workdir=DIR --users=ids.txt --k=20 --out=recs.parquet
python -m pdrec_jax.recommend --workdir=DIR --histories=new.csv --k=20 --out=recs.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pdrec_jax.command import Parser, answered, leave, number, some_files, some_path, some_text
from pdrec_jax.errors import UserError, warn
from pdrec_jax.main import load_config

if TYPE_CHECKING:
    from pdrec_jax.recommend.histories import Faults, Histories, Unknown
    from pdrec_jax.recommend.recommender import Recommender

_K = number(int, 1, 10_000)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.recommend",
        description="Recommends items that a user has not had yet, by a trained run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=some_text, required=True, metavar="DIR", help="of the run"
    )
    parser.add_argument(
        "--out", required=True, type=some_path, metavar="FILE", help=".parquet, .csv or .jsonl"
    )
    parser.add_argument("--k", type=_K, default=20, metavar="K", help="items a user (20)")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--users",
        type=some_path,
        metavar="FILE",
        help="users of the run's log, an id a line; all that they did there counts",
    )
    who.add_argument("--all_users", action="store_true", help="all users of the run's log")
    who.add_argument(
        "--histories",
        action="append",
        metavar="FILE",
        help="what new users did, a row an event: .csv, .tsv, .inter, .jsonl (each also .gz or "
        ".zst) or .parquet; several with commas or by repeating the flag",
    )
    parser.add_argument("--user", metavar="COLUMN", help="of the histories (user_id)")
    parser.add_argument("--item", metavar="COLUMN", help="of the histories (item_id)")
    parser.add_argument(
        "--time", metavar="COLUMN", help="of the histories; without it their rows are in order"
    )
    parser.add_argument(
        "--variant",
        help="of the encoder (base, hbr+nns+dpa, ..) or diffusion; by default the encoder with "
        "the best validation figure",
    )
    parser.add_argument(
        "--include_seen", action="store_true", help="items of the history can be recommended"
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="where the run's log is now, if it was moved; with a source domain two with a comma",
    )
    parser.add_argument(
        "--config",
        type=some_text,
        metavar="FILE",
        help="config file that registers an encoder of your own",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.

    Returns:
      the exit status, see ``command.answered``.
    """
    return answered(
        lambda: _run(_parser().parse_args(arguments)),
        "nothing was written",
    )


def _run(given: argparse.Namespace) -> None:
    from pdrec_jax import compilation
    from pdrec_jax.data.log_of_run import log_files
    from pdrec_jax.data.sources import files_of
    from pdrec_jax.files import (
        atomic_write,
        followed,
        require_no_input,
        require_outside,
        require_place,
    )
    from pdrec_jax.recommend.histories import Faults
    from pdrec_jax.recommend.output import format_of, open_writer
    from pdrec_jax.recommend.recommender import Recommender
    from pdrec_jax.workdir import Workdir

    _require_of_use(given)
    suffix, out = format_of(given.out), given.out
    require_place("--out", out)
    require_no_input("--out", out, _inputs(given))
    if given.config:
        load_config(given.config)
    place = Workdir.open(given.workdir)
    require_outside("--out", out, place.path)
    if given.log is not None:
        log_files(place, _paths([given.log]))  # before the model, which takes longer
    # Never a directory that the run names: programs from there would run, whoever made the run.
    compilation.use_cache("off" if place.config.compilation_cache == "off" else "auto")
    recommender = Recommender.load(given.workdir, given.variant)
    runs = (recommender.place, *recommender.others)
    for one in runs:
        require_outside("--out", out, one.path)
    run = {"the run": [file for one in runs for file in one.files()]}
    run["the run's log"] = [
        file for log in recommender.catalogue.places for file in files_of(Path(log))
    ]
    require_no_input("--out", out, run)
    faults = Faults()
    print(recommender.title, flush=True)
    counts = {"users": 0, "popular": 0, "rows": 0}

    def fill(file: BinaryIO) -> None:
        # Asked for here, so that a file that cannot be made is found before the log is read.
        histories = _histories(given, recommender, faults)
        with open_writer(file, suffix, recommender.catalogue.item_ids) as writer:
            for ranked in recommender.blocks(histories, given.k, include_seen=given.include_seen):
                counts["users"] += len(ranked.users)
                counts["popular"] += int((~ranked.known).sum())
                counts["rows"] += writer.write(ranked)

    atomic_write(followed(out), fill)
    for line in _summary(out, recommender, counts, faults):
        print(line, flush=True)


def _require_of_use(given: argparse.Namespace) -> None:
    """Checks that each flag says something of what was asked for."""
    columns = {"--user": given.user, "--item": given.item, "--time": given.time}
    for flag, value in columns.items():
        if value is not None and given.histories is None:
            raise UserError(f"{flag}: goes with --histories, of which it names a column")
    if given.log is None:
        return
    if given.histories is not None:
        raise UserError("--log: goes with --users and --all_users; --histories need no log")
    if not _paths([given.log]):
        raise UserError("--log: a file is expected")


def _inputs(given: argparse.Namespace) -> dict[str, list[Path]]:
    """The files that a command line reads, by its flags."""
    from pdrec_jax.data.sources import files_of, log_at

    return {
        "--users": [given.users] if given.users else [],
        "--histories": _paths(given.histories or ()),
        "--log": [file for path in _paths([given.log or ""]) for file in files_of(log_at(path))],
        "--config": [Path(given.config)] if given.config else [],
    }


def _paths(flags: Sequence[str]) -> list[Path]:
    return [path for names in flags for path in some_files(names)]


def _histories(
    given: argparse.Namespace, recommender: Recommender, faults: Faults
) -> Iterator[Histories]:
    from pdrec_jax.data.columns import Columns
    from pdrec_jax.recommend.histories import read_ids
    from pdrec_jax.recommend.recommender import BLOCK
    from pdrec_jax.recommend.spool import from_files

    files = _paths([given.log]) if given.log else None
    if given.histories is None:
        log = recommender.users_of_log(files)
        for ids in log.all(BLOCK) if given.all_users else read_ids(given.users, BLOCK):
            yield log.histories(ids, faults)
        return
    paths = _paths(given.histories)
    user = "user_id" if given.user is None else given.user
    item = "item_id" if given.item is None else given.item
    wanted = Columns(user, item, given.time or None)
    if not paths:
        raise UserError("--histories: a file is expected")
    if len(set(wanted.names)) < len(wanted.names) or "" in wanted.names:
        raise UserError("--user, --item, --time: different columns are expected")
    if shared := recommender.catalogue.num_shared_ids:
        warn(
            f"{shared:,} ids are used by both domains, and are read as the target's; --users and "
            "--all_users know both"
        )
    yield from from_files(
        paths, wanted, recommender.catalogue, faults, block=BLOCK, beside=given.out.parent
    )


def _summary(
    out: Path, recommender: Recommender, counts: dict[str, Any], faults: Faults
) -> Iterator[str]:
    for what, count in sorted(faults.rows.items()):
        yield f"skipped: {count:,} rows, {what}"
    if faults.items.count:
        yield f"skipped: {_told(faults.items, 'events', 'an item that the model does not know')}"
    if faults.users.count:
        yield f"unknown: {_told(faults.users, 'users', 'an id that is not in the log')}"
    if counts["popular"]:
        yield (
            f"by popularity: {counts['popular']:,} users without an item that the model knows get "
            "the most popular ones"
        )
    yield f"{out}: {counts['rows']:,} recommendations for {counts['users']:,} users"
    if recommender.simulated:
        yield "SIMULATED DATA: the run's log was made by the simulator"


def _told(unknown: Unknown, what: str, why: str) -> str:
    from pdrec_jax.data.columns import shown

    return f"{unknown.count:,} {what} with {why}, for instance {shown(unknown.example)}"


if __name__ == "__main__":
    leave(main())
