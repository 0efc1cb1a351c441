"""Command line that makes logs for the main job.

python -m pdrec_jax.prepare --input=log.csv --user=user --item=item --time=time --out=data/mine
python -m pdrec_jax.prepare --dataset=amazon [--origin=raw] [--downloads=DIR] --out=data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pdrec_jax.command import Parser, answered, leave, number, some_files, some_path
from pdrec_jax.errors import UserError

_OWN = ("input", "user", "item", "time", "unit", "duplicates", "user_core", "item_core", "mapped")
_PUBLIC = ("dataset", "origin", "downloads", "unverified")

_CORE = number(int, 1, 1_000_000)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.prepare",
        description="Makes logs for the main job: from a log of your own, or the paper's.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--out", metavar="DIR", help="where the result goes")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier call with this --out made",
    )
    own = parser.add_argument_group("a log of your own")
    own.add_argument(
        "--input",
        action="append",
        metavar="FILE",
        help=".csv, .tsv, .inter, .jsonl (each also .gz or .zst) or .parquet; several with commas "
        "or by repeating the flag (with a comma in a name, by repeating)",
    )
    own.add_argument("--user", metavar="COLUMN", help="users (default: user_id)")
    own.add_argument("--item", metavar="COLUMN", help="items (default: item_id)")
    own.add_argument(
        "--time",
        metavar="COLUMN",
        help="times; empty for a log without, whose rows are in order (default: timestamp)",
    )
    own.add_argument(
        "--unit",
        choices=("auto", "s", "ms", "us", "ns"),
        help="of numeric times; ISO dates are known by themselves (default: auto)",
    )
    own.add_argument(
        "--duplicates",
        choices=("exact", "first", "last", "keep"),
        help="drop records of the same user, item and time; all of a user and item but the first, "
        "or the last; or none (default: exact)",
    )
    own.add_argument(
        "--user_core",
        type=_CORE,
        metavar="N",
        help="fewest records of a user (default: 3)",
    )
    own.add_argument(
        "--item_core",
        type=_CORE,
        metavar="N",
        help="fewest records of an item (default: 1)",
    )
    own.add_argument(
        "--mapped",
        action="store_true",
        help="make a log that need not fit in memory, here or where it is trained on: columns that "
        "are mapped and not read; needs room in $TMPDIR, some 64 bytes a record",
    )
    public = parser.add_argument_group("the paper's logs")
    public.add_argument(
        "--dataset",
        choices=("amazon", "douban"),
        help="amazon: Toy and Game; douban: Book and Music",
    )
    public.add_argument(
        "--origin",
        choices=("pickles", "raw"),
        help="the authors' own files, checked against Table 2; or the data that they began with "
        "(default: pickles)",
    )
    public.add_argument(
        "--downloads",
        type=some_path,
        metavar="DIR",
        help="where files are kept, or already lie (default: OUT/downloads)",
    )
    public.add_argument(
        "--unverified",
        action="store_true",
        help="accept files and results whose checksum is not the recorded one",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
      the exit status, see ``command.answered``.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # Known before the command line is read, because a signal may come while it is.
    public = any(flag.partition("=")[0] == "--dataset" for flag in given)
    return answered(
        lambda: _run(_parser().parse_args(given)),
        "the same command continues its downloads" if public else "the same command begins anew",
    )


def _run(given: argparse.Namespace) -> None:
    flags = vars(given)
    if not flags.get("out", "").strip():
        raise UserError("--out: the directory of the result is expected")
    if ("input" in flags) == ("dataset" in flags):
        raise UserError("one of --input (a log of your own) and --dataset (the paper's) expected")
    strange = [name for name in (_PUBLIC if "input" in flags else _OWN) if name in flags]
    if strange:
        group = "--dataset" if "input" in flags else "--input"
        raise UserError(f"--{strange[0]}: goes with {group}")
    out, overwrite = Path(flags["out"]), flags.get("overwrite", False)
    if "dataset" in flags:
        from pdrec_jax.prepare.public import prepare_pair

        text = prepare_pair(
            flags["dataset"],
            out,
            downloads=flags.get("downloads", out / "downloads"),
            raw=flags.get("origin") == "raw",
            verify=not flags.get("unverified", False),
            overwrite=overwrite,
        )
    else:
        from pdrec_jax.data.columns import Columns
        from pdrec_jax.prepare.own import Rules, prepare

        paths = [path for names in flags["input"] for path in some_files(names)]
        if not paths:
            raise UserError("--input: a file is expected")
        wanted = Columns(
            flags.get("user", "user_id"),
            flags.get("item", "item_id"),
            flags.get("time", "timestamp") or None,
        )
        if len(set(wanted.names)) < len(wanted.names) or "" in wanted.names:
            raise UserError("--user, --item, --time: different columns are expected")
        if wanted.time is None and "unit" in flags:
            raise UserError("--unit: goes with times, and --time= says that there are none")
        rules = Rules(
            flags.get("unit", "auto"),
            flags.get("duplicates", "exact"),
            flags.get("user_core", 3),
            flags.get("item_core", 1),
            flags.get("mapped", False),
        )
        text = prepare(paths, wanted, out, rules, overwrite=overwrite)
    print(text, end="")


if __name__ == "__main__":
    leave(main())
