"""Command line that exports a trained encoder, to run without this package.

python -m pdrec_jax.export --workdir=DIR --out=artifact
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pdrec_jax.command import Parser, answered, leave, number, some_path, some_text
from pdrec_jax.main import load_config

_K = number(int, 1, 10_000)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.export",
        description="Writes a trained encoder as an artifact that runs with jax and numpy alone.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=some_text, required=True, metavar="DIR", help="of the run"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=some_path,
        metavar="DIR",
        help="directory of the artifact; one that is there, with nothing else in it, is replaced",
    )
    parser.add_argument("--k", type=_K, default=100, metavar="K", help="most items a user (100)")
    parser.add_argument(
        "--variant",
        help="of the encoder (base, hbr+nns+dpa, ..); by default that with the best validation "
        "figure",
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
    from pdrec_jax.export.artifact import require_free, write_artifact
    from pdrec_jax.files import require_outside
    from pdrec_jax.recommend.models import choose
    from pdrec_jax.recommend.recommender import Recommender
    from pdrec_jax.workdir import Workdir

    place = Workdir.open(given.workdir)
    require_outside("--out", given.out, place.path)
    require_free(given.out)
    if given.config is not None:
        load_config(given.config)
    # Before a model is loaded that is not exported.
    choose(place, given.variant, exported=True)
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


if __name__ == "__main__":
    leave(main())
