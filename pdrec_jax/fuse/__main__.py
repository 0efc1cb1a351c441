"""Ranks by the sum of two models' scores.

python -m pdrec_jax.fuse RUN:MODEL OTHER:MODEL --out=DIR

RUN and OTHER are workdirs of finished runs, of one seed or several, as ``compare`` takes them;
MODEL may be left out where a run has one. The score of the second model is added to that of the
first, each standardised for a user, with the weight of ``--weights`` that ranks the validation item
best. No plugin and no training: what is left to gain this way is what the second model knows and
the first does not, and what a plugin has to beat. DIR is a finished run for ``compare``, ``keep``
and ``recommend``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pdrec_jax.command import Parser, answered, leave, number, some_files, some_path, some_text
from pdrec_jax.files import require_outside
from pdrec_jax.main import load_config
from pdrec_jax.workdir import CONFIG

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)


def _weights(text: str) -> tuple[float, ...]:
    parse = number(float, 0.0, 1e6)
    found = tuple(parse(part.strip()) for part in text.split(","))
    if len({f"{weight:g}" for weight in found}) < len(found):
        raise argparse.ArgumentTypeError(f"different weights are expected: {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.fuse",
        description="Ranks by the sum of two models' scores, weighted on validation.",
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="RUN", help="workdir of a finished run, or RUN:MODEL")
    parser.add_argument("second", metavar="OTHER", help="likewise; its scores are added")
    parser.add_argument(
        "--out", type=some_path, required=True, metavar="DIR", help="results, for `compare`"
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        default=WEIGHTS,
        help="of the second model, with commas; validation chooses one",
    )
    parser.add_argument(
        "--config",
        type=some_text,
        metavar="FILE",
        help="config file that registers an encoder of your own",
    )
    parser.add_argument(
        "--log",
        type=some_files,
        default=[],
        metavar="FILE",
        help="the runs' log, target first, with commas, if it is not where it was",
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
        from pdrec_jax import compare, compilation
        from pdrec_jax.fuse.runs import fuse

        compilation.require_32_bits()
        if arguments.config:
            load_config(arguments.config)
        # Never a directory that a run names: programs from there would run, whoever made the run.
        compilation.use_cache("auto")
        first, second = compare.find(arguments.first), compare.find(arguments.second)
        compare.require_place(arguments.out, [])
        for each in (first, second):
            within_several = (each.path.resolve().parent / CONFIG).is_file()
            home = each.path.resolve().parent if within_several else each.path
            require_outside("--out", arguments.out, home)
        fuse(first, second, arguments.out, arguments.weights, arguments.log)
        fused = compare.find(str(arguments.out))
        compare.show(compare.compare_runs(first, [fused]))
        for seed, run in fused.seeds.items():
            (model,) = (run.results() or {})["models"]
            print(f"seed {seed}: weight {model['weight']:g} of {', '.join(model['weights'])}")

    return answered(work, "the same command begins anew")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
