"""Command line that takes models of the PyTorch reference into a run, and gives ours back.

python -m pdrec_jax.convert import --file=FILE.pth --config=FILE --workdir=DIR [--model=MODEL]
python -m pdrec_jax.convert export --file=FILE.pth --config=FILE --workdir=DIR [--model=MODEL]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from pdrec_jax.command import Parser, answered, leave, some_path
from pdrec_jax.data.sources import validated
from pdrec_jax.errors import UserError
from pdrec_jax.main import parse


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdrec_jax.convert",
        description="Takes a model of the PyTorch reference into a run, or gives ours back.",
        epilog="--config, --workdir and --config.FIELD are those of pdrec_jax.main; the data must "
        "be that of the model.",
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("import", "export"))
    parser.add_argument("--file", required=True, type=some_path, help="of torch: .pth or .pt")
    parser.add_argument(
        "--model",
        default="diffusion",
        help="diffusion, or a variant of the encoder: base, hbr+nns+dpa, .. (default: diffusion)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="export: rows of the reference's item tables, which count the padding and the items "
        "of both domains (default: those of the log)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments, without the program's name; those of the process where not given.

    Returns:
      the exit status, see ``command.answered``.
    """
    return answered(
        lambda: print(_run(*_parser().parse_known_args(sys.argv[1:] if argv is None else argv))),
        "nothing was converted",
    )


def _run(given: argparse.Namespace, rest: Sequence[str]) -> str:
    command = parse(["convert", *rest])
    validated(command.config, command.by_hand)
    from pdrec_jax import experiment, run_models
    from pdrec_jax.convert import names
    from pdrec_jax.convert.torch_files import read_tensors, write_tensors
    from pdrec_jax.data.readers import sha256
    from pdrec_jax.files import require_no_input, require_outside
    from pdrec_jax.given import prepare
    from pdrec_jax.training import Course
    from pdrec_jax.workdir import Workdir

    if not command.workdir:
        raise UserError("--workdir: the directory of the run is expected")
    if given.rows is not None and given.action == "import":
        raise UserError("--rows: goes with export")
    if given.rows is not None and not 1 <= given.rows < 2**31:
        raise UserError(f"--rows: at least 1 and below 2^31 is expected, got {given.rows}")
    config, files = experiment.resolve(command.config, command.by_hand)
    if config.seeds != 1:
        raise UserError(f"config.seeds: 1 is expected, got {config.seeds}")
    place = Workdir(command.workdir, config, "simulated" if files is None else "real")
    if given.action == "export":
        require_outside("--file", given.file, place.path)
    key = "diffusion" if given.model == "diffusion" else config.encoder.name
    if key not in ("diffusion", "sasrec", "gru4rec"):
        raise UserError(f"config.encoder.name: the reference has sasrec and gru4rec, not {key!r}")
    arrays = read_tensors(given.file) if given.action == "import" else None
    prepared, data = prepare(config, files)
    made = run_models.model_of(prepared, given.model, place.path)
    split, slots = prepared.split, made.slots
    if arrays is None:
        params, _ = made.store.restore("best", made.shapes)
        inputs = {"the run": place.files(), "the run's log": files or []}
        inputs["--config"] = [Path(command.path.partition(":")[0])]
        require_no_input("--file", given.file, inputs)
        number = given.rows
        if number is None:
            number = 1 + split.train.num_target_items + split.num_source_items
        rows = names.rows_of_items(split, slots, number, "--rows")
        write_tensors(given.file, names.to_reference(key, params, rows, number))
        return f"{given.file}: {made.key} of {place.path}, {number:,} rows"
    where = str(given.file)
    try:
        rows = names.rows_of_items(split, slots, names.table_of(key, arrays, where), where)
        params = names.to_ours(key, arrays, rows, where)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: a tensor has another shape than the reference's ({error})"
        ) from error
    made.require_shapes(params, where)
    origin = f"{given.file.name}, sha256 {sha256(given.file)}"
    with place.held(data):
        if place.phases.find(made.key) is not None or made.store.step("best") is not None:
            raise UserError(f"{place.path}: has {made.key} already; name another --workdir")
        made.store.delete("state")
        made.store.save("best", 0, params, dataclasses.asdict(Course(origin=origin)))
    return f"{place.path}: {made.key} is that of {given.file}; pdrec_jax.main goes on from it"


if __name__ == "__main__":
    leave(main())
