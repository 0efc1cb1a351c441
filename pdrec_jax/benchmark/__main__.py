"""Command line of the benchmark.

python -m pdrec_jax.benchmark [--stage=reverse] [--repeats=20] [--out=DIR] [--items=100000 ...]
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.errors import UserError, one_line

# The keys of suite.STAGES, which would take JAX to look at.
STAGES = ("reverse", "encoder_step", "diffusion_step", "preferences", "evaluation")
USAGE = 2  # exit status for what the user can mend


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage too; one line is the house's way.
        raise UserError(message)


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    what = "a whole number" if kind is int else "a number"
    limit = f"of at least {least:,}" if math.isinf(most) else f"from {least:g} to {most:g}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{what} {limit} is expected, got {text!r}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pdrec_jax.benchmark",
        description="Times each stage's fast path beside its slow twin, in turns.",
        allow_abbrev=False,
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to time")
    parser.add_argument(
        "--repeats", type=_number(int, 1), help="timed rounds; each stage's own number if not given"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write benchmark.txt, .md and .json there"
    )
    parser.add_argument(
        "--reference",
        type=Path,
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
            type=_number(type(field.default), field.metadata["least"], most),
            default=field.default,
            metavar="N",
            help=f"{field.metadata['meaning']} (default: {field.default:,})",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with 2 and one line on a mistake of the user's.

    Args:
      arguments: without the program's name; None for those of the process.
    """
    try:
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
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
