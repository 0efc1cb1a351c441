"""Command line that explains one user of a run.

python -m pdrec_jax.inspect --workdir=runs/toy-strict-0 --user=ID [--html=FILE] [--top=10]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pdrec_jax.command import Parser, answered, leave, number, some_files, some_path, some_text
from pdrec_jax.errors import UserError
from pdrec_jax.files import (
    atomic_write_text,
    followed,
    require_no_input,
    require_outside,
    require_place,
)

_TOP = number(int, 1, 1000)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.inspect",
        description="Explains one user of a run: history with the plugins' weights, DPA's "
        "candidates, NNS's sample, and what each trained model recommends.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=some_path, metavar="DIR", help="of a run", required=True)
    parser.add_argument("--user", metavar="ID", help="as the log has it", required=True)
    parser.add_argument("--html", type=some_path, metavar="FILE", help="write one web page too")
    parser.add_argument(
        "--top",
        type=_TOP,
        default=10,
        metavar="K",
        help="items of each model (default: 10)",
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
        help="the run's config file, needed only where it registers an encoder of its own",
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
    log = some_files(given.log or "")
    if given.log is not None and not log:
        raise UserError("--log: a file is expected")
    if given.config is not None:
        from pdrec_jax.main import load_config

        load_config(given.config)
    # Imported here, so that a mistyped flag is answered before JAX is loaded.
    from pdrec_jax.data.sources import files_of
    from pdrec_jax.inspect.explain import explain
    from pdrec_jax.inspect.page import as_page
    from pdrec_jax.inspect.text import as_text
    from pdrec_jax.inspect.trained import log_files, open_run
    from pdrec_jax.workdir import Workdir

    if given.html is not None:
        require_place("--html", given.html)
        require_outside("--html", given.html, Workdir.open(given.workdir).path)
    run = open_run(given.workdir, log)
    if given.html is not None:
        config = [Path(given.config)] if given.config else []
        logs = [file for path in log_files(run.place, log) or [] for file in files_of(path)]
        inputs = {"the run": run.place.files(), "the run's log": logs, "--config": config}
        require_no_input("--html", given.html, inputs)
    told = explain(run, given.user, given.top)
    if given.html is not None:
        # Before the text: who sees it can open the page.
        atomic_write_text(followed(given.html), as_page(told))
    print(as_text(told), end="")


if __name__ == "__main__":
    leave(main())
