"""Where the log of a run comes from: the user's files, or the simulator where there are none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax.data.interactions import Interactions, merge_domains
from pdrec_jax.data.readers import find_log, read_log, sha256
from pdrec_jax.data.simulator import simulate
from pdrec_jax.errors import UserError


def directories(config: ConfigDict) -> list[Path]:
    """Returns where logs are looked for, in order: data.dir, $PDREC_DATA, data/."""
    named = [config.data.dir, os.environ.get("PDREC_DATA", ""), "data"]
    return [Path(place).expanduser() for place in named if place]


def find_files(config: ConfigDict) -> list[Path] | None:
    """Finds the target log and, where one is named, the auxiliary log.

    Returns:
      their paths; None where the run is to be simulated.

    Raises:
      UserError: a log is missing and ``data.source`` is ``real``, or only one of two is there.
    """
    data = config.data
    if data.source == "simulated":
        return None
    names = [name for name in (data.target, data.auxiliary) if name]
    found = {name: _find(name, config) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if not missing and names:
        return [path for path in found.values() if path is not None]
    if data.source == "auto" and len(missing) == len(names):
        return None
    if not data.target:
        raise UserError("config.data.target: the name or path of a log is expected")
    looked = ", ".join(str(place) for place in directories(config))
    raise UserError(
        f"{' and '.join(missing)}: not found in {looked}; put the logs (RecBole .inter or "
        ".inter.gz, CSV, TSV or Parquet) into one of these, name another directory with "
        "--config.data.dir=DIR, or simulate with --config.data.source=simulated"
    )


def _find(name: str, config: ConfigDict) -> Path | None:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = name.removesuffix(".gz").removesuffix(".inter") if name.endswith(".inter") else name
    return find_log(stem, directories(config))


def load(config: ConfigDict, files: list[Path] | None) -> tuple[Interactions, dict[str, Any]]:
    """Reads or simulates the log of a run.

    Args:
      config: sections ``data`` and ``simulation``.
      files: from ``find_files``.

    Returns:
      the log, and what a result file says of its source.
    """
    if files is None:
        simulation = config.simulation
        made = simulate(
            simulation.num_users,
            simulation.num_items,
            seed=config.seed,
            mean_length=simulation.mean_length,
            source_items=simulation.num_source_items,
        )
        return made.log, {"source": "simulated", "files": []}
    data = config.data
    logs = [
        read_log(path, user=data.user, item=data.item, time=data.time or None, ids=data.ids)
        for path in files
    ]
    log = logs[0] if len(logs) == 1 else merge_domains(*logs)
    listed = [{"name": path.name, "sha256": sha256(path)} for path in files]
    return log, {"source": "real", "files": listed}
