"""Where the log of a run lies, for whoever opens the run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdrec_jax.data import sources
from pdrec_jax.data.catalogue import CATALOGUE, load_catalogue
from pdrec_jax.errors import UserError
from pdrec_jax.workdir import Workdir


def log_files(place: Workdir, log: Sequence[Path]) -> list[Path] | None:
    """The files of a run's log; None where it was simulated.

    Args:
      place: the run.
      log: where they are now, if not where they were; of a prepared log also its directory.

    Raises:
      UserError: one of them is missing, or is named where it was simulated.
    """
    if place.data.get("source") == "simulated":
        if log:
            raise UserError(
                "--log: the run's log was simulated, and is simulated again; leave it out"
            )
        return None
    if not log and (place.path / CATALOGUE).is_file():
        log = [Path(name) for name in load_catalogue(place.path).places]
    if not log:
        config = place.config
        config.data.source = "real"
        return sources.find_files(config)
    sources.require_as_many(log, place.data["files"])
    found = [sources.log_at(file) for file in log]
    for file in found:
        if not file.exists():
            raise UserError(
                f"{file}: the log of the run is not there; name its place by --log=FILE"
            )
    return found


def require_same_log(place: Workdir, data: Mapping[str, Any]) -> None:
    """Checks that a log that was read is the one that a run was trained on.

    Args:
      place: the run.
      data: its ``files``, as ``sources.load`` describes them.

    Raises:
      UserError: it is another one, by its checksums.
    """
    expected = [file["sha256"] for file in place.data.get("files", [])]
    if expected != [file["sha256"] for file in data["files"]]:
        names = ", ".join(file["name"] for file in data["files"])
        raise UserError(
            f"{names}: another content, by its checksum, than {place.path} was trained on"
        )
