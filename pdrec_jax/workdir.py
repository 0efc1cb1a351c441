"""The directory of a run: its config, the phases that are done, the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_savez, atomic_write_text, write_errors
from pdrec_jax.settings import differences

_CONFIG, _RESULTS, _PER_USER = "config.json", "results.json", "per_user.npz"


class Workdir:
    """Files of one run; every write is atomic.

    Args:
      path: made if missing.
      config: resolved; must be that of the run already in the directory, if there is one.

    Raises:
      UserError: the directory holds another run, or files that are no run.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path)
        plain = json.loads(config.to_json())
        saved = self.path / _CONFIG
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: a directory is expected")
        if saved.is_file():
            changed = differences(config, _read_json(saved))
            if changed:
                raise UserError(
                    f"{self.path}: holds a run with another config, which differs in "
                    f"{', '.join(changed[:5])}; name another --workdir or remove it"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path}: not empty and not a run; name another --workdir")
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "phases").mkdir(exist_ok=True)
        atomic_write_text(saved, json.dumps(plain, indent=2) + "\n")

    def results(self) -> dict[str, Any] | None:
        """Returns the results of a finished run, None otherwise."""
        path = self.path / _RESULTS
        return _read_json(path) if path.is_file() else None

    def phase(self, name: str) -> dict[str, Any] | None:
        """Returns what a phase that is done has left, None otherwise."""
        path = self.path / "phases" / f"{name}.json"
        return _read_json(path) if path.is_file() else None

    def finish_phase(
        self, name: str, record: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        """Marks a phase as done, with a JSON record and per-user arrays."""
        if arrays:
            atomic_savez(self.path / "phases" / f"{name}.npz", **arrays)
        atomic_write_text(self.path / "phases" / f"{name}.json", json.dumps(record, indent=2))

    def phase_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the per-user arrays of a phase, empty where it has none."""
        path = self.path / "phases" / f"{name}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    def finish(self, results: dict[str, Any], per_user: dict[str, np.ndarray]) -> None:
        """Writes per-user ranks and, last, the results, which mark the run as finished."""
        atomic_savez(self.path / _PER_USER, **per_user)
        atomic_write_text(self.path / _RESULTS, json.dumps(results, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: JSON is expected ({error})") from error
