"""Command line of the main job, and the same from Python (``train``).

python -m pdrec_jax.main --config=FILE[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=K]

The last three are for one of several processes, where the environment does not say so.
"""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from pdrec_jax import interrupts
from pdrec_jax.command import answered, leave
from pdrec_jax.data.sources import validated
from pdrec_jax.errors import UserError
from pdrec_jax.settings import FIELDS, misfit, put, require_field

_HELP = {"-h", "-help", "--help", "--helpfull", "--helpshort"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
      config: resolved.
      by_hand: the fields set by hand.
      path: of the config file, with its argument.
      workdir: directory of the run.
      coordinator: see ``processes.initialise``, and so are the next two.
      num_processes: see there.
      process_id: see there.
    """

    config: ConfigDict
    by_hand: Collection[str]
    path: str
    workdir: str | None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: program name and arguments; those of the process where not given.

    Returns:
      the exit status, see ``command.answered``.
    """
    argv = list(sys.argv if argv is None else argv)
    return answered(lambda: _main(argv), "the same command resumes the run")


def _main(argv: list[str]) -> None:
    if _HELP & set(argv[1:]):
        print(help_text())
        return
    command = parse(argv)
    validated(command.config, command.by_hand)
    # Imported here, so that a mistyped flag is answered before JAX is loaded.
    from pdrec_jax import processes

    with processes.joined(command.coordinator, command.num_processes, command.process_id):
        from pdrec_jax.experiment import run

        run(command.config, command.by_hand, command.workdir)


def train(
    config: str | Path | ConfigDict,
    fields: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
) -> dict[str, Any]:
    """Runs or resumes the main job from Python, one at a time in a process.

    SIGINT (a notebook's button that interrupts) and SIGTERM let it save its state first; a second
    one ends the process.

    Args:
      config: a config file, with its argument behind a colon (``configs/toy.py:readme``); or a
        config, which stays as it is.
      fields: values by dotted field, such as ``{"encoder.name": "gru4rec"}``; NumPy's numbers and
        arrays will do, and paths. Like those of a
        command line they win over what the config has for a protocol, an encoder or a simulated
        log.
      workdir: directory of the run; None for one named after the experiment.

    Returns:
      the results, as in the workdir's ``results.json``.

    Raises:
      UserError: anything the user can mend, in one line.
      KeyboardInterrupt: a signal came; the same call goes on.
    """
    loaded = config if isinstance(config, ConfigDict) else load_config(str(config))
    loaded = loaded.copy_and_resolve_references()
    by_hand = frozenset(fields or ())
    for field, value in (fields or {}).items():
        require_field(field)
        value = _plain(value)
        if not FIELDS[field].fits(value):
            raise misfit(field, value)
        put(loaded, field, value)
    _parsed()
    from pdrec_jax.experiment import run

    with interrupts.heard():
        return run(loaded, by_hand, None if workdir is None else str(workdir))


def _plain(value: Any) -> Any:
    """A value as a config has it, of what tuners, arrays and ``pathlib`` give."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _parsed() -> None:
    """Says that there is no command line left to parse; absl's own flags raise until somebody does.

    Libraries below look at them.
    """
    flags.FLAGS.mark_as_parsed()


def parse(argv: Sequence[str]) -> Command:
    """Reads a command line.

    Args:
      argv: program name and arguments.

    Raises:
      UserError: an unknown flag or field, a value of the wrong type, a config file that is missing
        or fails.
    """
    path, rest = _take_config(list(argv))
    own = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "directory of the run", flag_values=own)
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0", flag_values=own
    )
    number = flags.DEFINE_integer("num_processes", None, "of the run", flag_values=own)
    process = flags.DEFINE_integer("process_id", None, "of this process", flag_values=own)
    config = load_config(path)
    try:
        config_flags.DEFINE_config_dict(
            "config", config, "the experiment", flag_values=own, sys_argv=rest
        )
        left = own(rest)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _mistake(rest, error) from error
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}; a field is set as --config.FIELD=VALUE")
    by_hand = config_flags.get_override_values(own["config"])
    for field in by_hand:
        require_field(field)
    _parsed()
    return Command(
        config,
        frozenset(by_hand),
        path,
        workdir.value,
        coordinator.value,
        number.value,
        process.value,
    )


def load_config(path: str) -> ConfigDict:
    """Runs a config file's ``get_config``, with what follows a colon in ``path`` as its argument.

    Raises:
      UserError: the file is missing or fails, with the row.
    """
    name, colon, argument = path.partition(":")
    if not Path(name).is_file():
        raise UserError(f"--config: {name or 'no path'}: no such file")
    try:
        make = runpy.run_path(name).get("get_config")
        config = make(argument) if make and colon else make() if make else None
    except UserError as error:
        raise UserError(f"--config: {name}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        rows = [frame.lineno for frame in frames if frame.filename == name]
        row = getattr(error, "lineno", None) or (rows[-1] if rows else None)
        where = f"row {row}: " if row else ""
        raise UserError(f"--config: {name}: {where}{type(error).__name__}: {error}") from error
    if make is None:
        raise UserError(f"--config: {name}: a function get_config is expected")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: {name}: get_config must return a ConfigDict, got {type(config).__name__}"
        )
    return config


def help_text() -> str:
    """Lists every field with its default, its range and what it means."""
    lines = [str(__doc__).strip(), "", "Fields, their defaults before the config file, and ranges:"]
    for name, field in FIELDS.items():
        lines.append(f"  --config.{name}={field.default!r}")
        lines.append(f"      {field.meaning}; {field.expected}")
    return "\n".join(lines)


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """Splits off the flag --config, whose file must be known before its fields can be parsed."""
    path, rest, index = None, argv[:1], 1
    while index < len(argv):
        name, equals, value = argv[index].partition("=")
        if name in ("-config", "--config"):
            if not equals:
                index += 1
                value = argv[index] if index < len(argv) else ""
            path = value
        else:
            rest.append(argv[index])
        index += 1
    if path is None:
        raise UserError("--config: a file is expected, for instance --config=configs/toy.py")
    return path, rest


def _mistake(argv: Sequence[str], error: Exception) -> UserError:
    """Says in one line what the libraries say in many."""
    for argument in argv[1:]:
        found = re.fullmatch(r"--?(no)?config\.(?P<field>[^=]*)(=(?P<value>.*))?", argument, re.S)
        if found:
            field, value = found["field"], found["value"]
            require_field(field)
            if f"--config.{field}={value}:" in str(error):
                return misfit(field, value)
    return UserError(str(error))


if __name__ == "__main__":
    leave(main())
