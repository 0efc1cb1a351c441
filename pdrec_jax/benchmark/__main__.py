"""Command line of the benchmark.

python -m pdrec_jax.benchmark [--stage=reverse] [--repeats=20] [--out=DIR] [--items=100000 ...]
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence

from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.command import Parser, answered, leave, number, some_path

# The keys of suite.STAGES, which would take JAX to look at.
STAGES = ("reverse", "encoder_step", "diffusion_step", "preferences", "evaluation")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.benchmark",
        description="Times each stage's fast path beside its slow twin, in turns.",
        allow_abbrev=False,
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to time")
    parser.add_argument(
        "--repeats", type=number(int, 1), help="timed rounds; each stage's own number if not given"
    )
    parser.add_argument(
        "--out", type=some_path, metavar="DIR", help="write benchmark.txt, .md and .json there"
    )
    parser.add_argument(
        "--reference",
        type=some_path,
        metavar="DIR",
        help="clone of github hulkima/PDRec: time each stage beside it, on the same log and device",
    )
    parser.add_argument(
        "--data",
        choices=("auto", "real", "simulated"),
        default="auto",
        help="auto: the Toy logs in $PDREC_DATA or data/, else a simulated one (default: auto)",
    )
    parser.add_argument("--fast", action="store_true", help="leave out the slow twins")
    sizes = parser.add_argument_group("sizes of the work")
    for field in dataclasses.fields(Sizes):
        if "choices" in field.metadata:
            parser.add_argument(
                f"--{field.name}",
                choices=field.metadata["choices"],
                default=field.default,
                help=f"{field.metadata['meaning']} (default: {field.default})",
            )
            continue
        most = 1 if field.type is float else math.inf
        sizes.add_argument(
            f"--{field.name}",
            type=number(type(field.default), field.metadata["least"], most),
            default=field.default,
            metavar="N",
            help=f"{field.metadata['meaning']} (default: {field.default:,})",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.

    Returns:
      the exit status, see ``command.answered``.
    """

    def work() -> None:
        given = _parser().parse_args(arguments)
        # Imported here, so that a mistyped flag is answered at once.
        from pdrec_jax.benchmark.suite import run

        fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(Sizes)}
        stages = STAGES if given.stage == "all" else (given.stage,)
        run(
            stages,
            Sizes(**fields),
            source=given.data,
            repeats=given.repeats,
            out=given.out,
            reference=given.reference,
            fast=given.fast,
        )

    return answered(
        work, "the comparisons that were done are told, and written where --out is given"
    )


if __name__ == "__main__":
    leave(main())
