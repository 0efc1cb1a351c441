"""Where the log of a run comes from: the user's files, or the simulator where there are none."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.mapped import checksum, read_mapped
from pdrec_jax.data.readers import find_log, read_log, sha256
from pdrec_jax.data.simulator import simulate
from pdrec_jax.errors import UserError
from pdrec_jax.files import expanded
from pdrec_jax.overrides import apply_protocol, fill, validate
from pdrec_jax.settings import FIELDS, get, misfit, require_fields

# What `python -m pdrec_jax.prepare` leaves in the directory of a log of one's own.
PREPARED, PREPARED_LOG = "prepared.json", "log.parquet"
# In place of the log's file, where it was prepared to be mapped.
PREPARED_COLUMNS = "log"

# The column that `prepare` gives Music's log for want of times: it says what came first, no more.
STAND_INS = "order"

# Those of them that say how many a catalogue allows: docs/search.md chose that many to draw from.
_CAPS = ("dpa.coarse", "dpa.fine")

_VARIABLE = "PDREC_DATA"


def directories(config: ConfigDict) -> list[Path]:
    """Returns where logs are looked for, in order: data.dir, $PDREC_DATA, data/.

    Raises:
      UserError: one of the first two is set and is no directory, most likely a typing mistake.
    """
    named = {"config.data.dir": config.data.dir, f"${_VARIABLE}": os.environ.get(_VARIABLE, "")}
    found = []
    for what, place in named.items():
        if place:
            found.append(expanded(place, what))
            if not found[-1].is_dir():
                raise UserError(f"{what}: {place} is no directory")
    return [*found, Path("data")]


def validated(config: ConfigDict, by_hand: Collection[str]) -> ConfigDict:
    """The config with the settings for its protocol and for its prepared log, checked as a whole.

    What was chosen for the log at hand counts for more than what suits the paper's.

    Args:
      config: resolved.
      by_hand: the fields that the command line sets; they stay as they are.

    Raises:
      UserError: the first field that is wrong; or see ``adopt``.
    """
    require_fields(config)
    config = adopt(apply_protocol(config, by_hand), by_hand)
    validate(config)
    return config


def adopt(config: ConfigDict, by_hand: Collection[str]) -> ConfigDict:
    """Takes over the settings that were chosen for a prepared log.

    Where the command line names the log they win over the config file, which was written for
    another one, but for the experiment's name. A file that names the log was written for it: what
    that sets away from the defaults stays as it is.

    Where the config does not draw DPA's positives, for which the log's many candidates were chosen,
    it keeps its own number of them, as far as the catalogue allows.

    Args:
      config: resolved; without ``data.path`` it comes back as it is.
      by_hand: the fields that the command line sets; they stay as they are.

    Returns:
      the config with the settings of the directory ``data.path``.

    Raises:
      UserError: the directory is missing or was not made by ``pdrec_jax.prepare``.
    """
    if not config.data.path:
        return config
    if "data.target" in by_hand:
        raise UserError(
            "config.data.target: config.data.path names the log already, and one of the two is "
            "expected"
        )
    path = Path(config.data.path) / PREPARED
    where = f"config.data.path: {path}"
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["config"]
        values = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in chosen.items()
        }
    except OSError as error:
        raise UserError(
            f"{where}: cannot be read ({error.strerror}); the directory that "
            "`python -m pdrec_jax.prepare` made is expected"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not written by `python -m pdrec_jax.prepare`") from error
    for field, value in values.items():
        if field not in FIELDS:
            raise UserError(f"{where}: there is no field {field!r}")
        if not FIELDS[field].fits(value):
            raise misfit(field, value, f"{where}: ")
    if not _draws(config):
        caps = [field for field in _CAPS if field in values]
        values |= {field: min(values[field], get(config, field)) for field in caps}
    values["data.auxiliary"] = ""
    of_file = ["name"] if "data.path" in by_hand else set(values) - {"data.time"}
    changed = (field for field in of_file if get(config, field) != FIELDS[field].default)
    by_hand = {*by_hand, *changed}
    return fill(config, {**values, "data.user": "user_id", "data.item": "item_id"}, by_hand)


def _draws(config: ConfigDict) -> bool:
    """Whether a config's settings for its protocol draw DPA's positives at every position.

    What is set by hand does not count: runs with and without can then share preferences.
    """
    return bool(dict(config[f"{config.protocol}_overrides"]).get("dpa.drawn"))


def find_files(config: ConfigDict) -> list[Path] | None:
    """Finds the target log and, where one is named, the auxiliary log.

    Returns:
      their paths; None where the run is to be simulated.

    Raises:
      UserError: a log is missing and ``data.source`` is ``real``, only one of two is there, or one
        that is named by a path is not.
    """
    data = config.data
    if data.source == "simulated":
        return None
    if data.path:
        own = _log_in(Path(data.path))
        return _beside_each_other([own, _beside(config)] if data.auxiliary else [own])
    if not data.target:
        if data.source == "auto" and not data.auxiliary:
            return None
        raise UserError(
            "config.data.target: the name or path of a log is expected, or a prepared directory as "
            "config.data.path"
        )
    places = directories(config)
    fields = {"target": data.target, "auxiliary": data.auxiliary}
    found = {field: _find(name, places) for field, name in fields.items() if name}
    if data.auxiliary and found["auxiliary"] is None:
        found["auxiliary"] = _prepared(Path(data.auxiliary))
    missing = [field for field, path in found.items() if path is None]
    for field in missing:
        # Someone who types a path means that file: a simulated run would be a surprise.
        if Path(fields[field]).name != fields[field]:
            raise UserError(f"config.data.{field}: {fields[field]}: no such file")
    if data.source == "auto" and len(missing) == len(found):
        return None
    if missing:
        raise UserError(_how_to_get([fields[field] for field in missing], places, data.origin))
    return _beside_each_other([path for path in found.values() if path is not None])


def _beside(config: ConfigDict) -> Path:
    """The auxiliary log of a prepared one.

    Raises:
      UserError: it is missing.
    """
    name = config.data.auxiliary
    found = _find(name, directories(config)) or _prepared(Path(name))
    if found is None:
        raise UserError(f"config.data.auxiliary: {name}: no such file, nor a prepared directory")
    return found


def _beside_each_other(files: list[Path]) -> list[Path]:
    """Returns the logs of a run; two are different ones, and not mapped.

    Raises:
      UserError: they are one, or one is mapped.
    """
    if len(files) > 1 and files[0].resolve() == files[1].resolve():
        raise UserError(
            f"config.data.auxiliary: another log than the target is expected, got {files[1]}"
        )
    for path in files:
        if len(files) > 1 and path.is_dir():
            raise UserError(
                f"config.data.auxiliary: {path} is mapped, and two logs are read into memory; "
                "prepare it without --mapped"
            )
    return files


def _prepared(path: Path) -> Path | None:
    """The log of a directory that ``pdrec_jax.prepare`` made, None of any other path."""
    return _log_in(path) if (path / PREPARED).is_file() else None


def log_at(path: Path) -> Path:
    """The log of a directory that ``pdrec_jax.prepare`` made; any other path is that of a log."""
    return _prepared(path) or path


def files_of(log: Path) -> list[Path]:
    """A log's file, or its files if it is mapped, and the settings that were prepared with it."""
    files = [path for path in log.rglob("*") if path.is_file()] if log.is_dir() else [log]
    return [*files, log.parent / PREPARED]


def _log_in(prepared: Path) -> Path:
    columns = prepared / PREPARED_COLUMNS
    return columns if columns.is_dir() else prepared / PREPARED_LOG


def _find(name: str, places: list[Path]) -> Path | None:
    # A log that is named unpacked may lie there packed.
    for place in (*places, Path()):
        found = find_log(name, [place]) or find_log(f"{name}.gz", [place])
        if found is not None:
            return found
    return None


def _how_to_get(names: list[str], places: list[Path], origin: str) -> str:
    looked = ", ".join(str(place) for place in places)
    return (
        f"{' and '.join(names)}: not found in {looked}"
        + (f"; {origin}" if origin else "")
        + "; put the logs (.inter, .csv, .tsv, each also as .gz, or .parquet) into one of these "
        "directories, name another with --config.data.dir=DIR, or run on a simulated log with "
        "--config.data.source=simulated"
    )


def load(config: ConfigDict, files: list[Path] | None) -> tuple[Interactions, dict[str, Any]]:
    """Reads or simulates the log of a run.

    Args:
      config: sections ``data`` and ``simulation``.
      files: from ``find_files``.

    Returns:
      the log, and what a result file says of its source.

    Raises:
      UserError: anything wrong with a file.
    """
    data = config.data
    if files is None:
        simulation = config.simulation
        made = simulate(
            simulation.num_users,
            simulation.num_items,
            seed=config.seed if simulation.seed < 0 else simulation.seed,
            mean_length=simulation.mean_length,
            source_items=simulation.num_source_items,
        )
        found: dict[str, Any] = {"source": "simulated", "files": []}
        if data.source == "auto" and data.target:
            found["note"] = f"no real log was found ({data.target}): a simulated one took its place"
        # As a log that is read has none then; `recommend` goes by the field alone.
        log = made.log if data.time else dataclasses.replace(made.log, times=None)
        return log, found
    if files[0].is_dir():
        log = read_mapped(files[0], ids=data.ids)
        if data.time and log.times is None:
            raise UserError(f"config.data.time: {files[0]} was prepared without times, expected ''")
        if not data.time:
            log = dataclasses.replace(log, times=None)
        return log, _found(config, log, listed(files))
    columns = (data.time, data.auxiliary_time or data.time)
    logs = [
        read_log(path, user=data.user, item=data.item, time=time or None, ids=data.ids)
        for path, time in zip(files, columns, strict=False)
    ]
    log = logs[0]
    if len(logs) > 1:
        log = merge_domains(log, logs[1], source_first=data.auxiliary_first)
    return log, _found(config, log, listed(files))


def require_as_many(given: Sequence[Path], files: Sequence[dict[str, str]]) -> None:
    """Checks that as many files are named as a run's log has.

    Args:
      given: by ``--log``.
      files: of the run, from ``listed``.

    Raises:
      UserError: more or fewer.
    """
    if len(given) != len(files):
        names = ", ".join(file["name"] for file in files)
        raise UserError(f"--log: as many files as {names} expected, got {len(given)}")


def listed(files: list[Path] | None) -> list[dict[str, str]]:
    """Names the files of a log, each with its checksum; none of a simulated one.

    Args:
      files: from ``find_files``.

    Raises:
      UserError: one cannot be read.
    """
    found = []
    for path in files or []:
        digest = checksum(path) if path.is_dir() else _sha256(path, *_mark(path))
        found.append({"name": path.name, "sha256": digest})
    return found


def _mark(path: Path) -> tuple[int, int]:
    """What changes with a file; of one that cannot be read nothing, and ``sha256`` says why."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    """The checksum of a file, computed once while its size and its time stay."""
    del size, modified
    return sha256(path)


def _found(config: ConfigDict, log: Interactions, files: list[dict[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {"source": "real", "files": files}
    weighed = "behaviours are weighed by position, as in T-DiffRec"
    if log.times is None and config.diffusion.weighting == "time":
        found["note"] = f"the log has no times: {weighed}"
    elif config.data.time == STAND_INS and config.diffusion.weighting == "position":
        found["note"] = f"the log has stand-ins for times, which say the order alone: {weighed}"
    return found


def require_times(config: ConfigDict) -> None:
    """Checks that a real log has times, and not stand-ins, where a diffusion model weighs by them.

    Args:
      config: resolved.

    Raises:
      UserError: it has stand-ins.
    """
    if config.data.time != STAND_INS or config.preferences_by != "diffusion":
        return
    for field, expected in (("weighting", "position"), ("both", False)):
        if config.diffusion[field] != expected:
            raise UserError(
                f"config.diffusion.{field}: {expected!r} is expected with "
                f"data.time={STAND_INS!r}, a column that says what came first and not when, got "
                f"{config.diffusion[field]!r}; a column of times needs another name"
            )
