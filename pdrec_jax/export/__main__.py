"""Command line that exports a trained encoder, to run without this package.

python -m pdrec_jax.export --workdir=DIR --out=artifact
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pdrec_jax.errors import UserError
from pdrec_jax.main import INTERRUPTED, MISTAKE, load_config

_MOST = 10_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _wanted(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= _MOST:
        raise argparse.ArgumentTypeError(
            f"a whole number of at least 1 and at most {_MOST:,} is expected, got {text!r}"
        )
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pdrec_jax.export",
        description="Writes a trained encoder as an artifact that runs with jax and numpy alone.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="directory of the artifact; one that is there is replaced",
    )
    parser.add_argument(
        "--k", type=_wanted, default=100, metavar="K", help="most items a user (100)"
    )
    parser.add_argument(
        "--variant",
        help="of the encoder (base, hbr+nns+dpa, ..); by default that with the best validation "
        "figure",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="config file that registers an encoder of your own"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.

    Returns:
      The exit status: 0, 2 after one line on a mistake of the user's, 130 when interrupted.
    """
    try:
        _run(_parser().parse_args(arguments))
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(f"disk full ({error})")
    return 0


def _run(given: argparse.Namespace) -> None:
    from pdrec_jax.export.artifact import require_free, write_artifact
    from pdrec_jax.recommend.recommender import Recommender

    require_free(given.out)
    if given.config:
        load_config(given.config)
    recommender = Recommender.load(given.workdir, given.variant)
    print(recommender.title, flush=True)
    made = write_artifact(recommender, given.out, given.k)
    print(
        f"{given.out}: {made['items_recommended']:,} items, up to {made['k']} a user, for "
        f"{', '.join(made['platforms'])}; its README.md has a script that runs it",
        flush=True,
    )
    if recommender.simulated:
        print("SIMULATED DATA: the run's log was made by the simulator", flush=True)


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
