"""What the phases of a run have left: of each a sealed record, and arrays with a row a user."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax import processes
from pdrec_jax.errors import UserError, warn
from pdrec_jax.files import (
    atomic_savez,
    atomic_write_text,
    read_arrays,
    read_errors,
    read_json,
    write_errors,
)

_SEAL, _RECORD = "sha256", "record"


class PhaseRecords:
    """The records of a run's phases; one that is sound says that its phase is done.

    Of several processes the first one alone writes; the others wait for it.

    Args:
      path: of their directory, which may be missing until a phase is finished.
    """

    def __init__(self, path: Path):
        self.path = path
        self._doubted: set[str] = set()  # that were warned of
        self._undone: set[str] = set()

    def find(self, name: str) -> dict[str, Any] | None:
        """Returns what a phase that is done has left, None otherwise.

        Warns where a phase was done and its files are damaged: it counts as not done.
        """
        if name in self._undone:
            return None
        try:
            return self._sound(name)
        except UserError as error:
            if name not in self._doubted:
                self._doubted.add(name)
                warn(f"{error}; {name} counts as not done")
            return None

    def doubted(self, name: str) -> bool:
        """Whether a phase was done and its files are damaged, of which ``find`` has warned."""
        return self.find(name) is None and name in self._doubted

    def require_sound(self, name: str) -> dict[str, Any] | None:
        """Returns what ``find`` does, for commands that cannot do a phase anew.

        Raises:
          UserError: the phase was done and its files are damaged.
        """
        try:
            return self._sound(name)
        except UserError as error:
            raise UserError(f"{error}; the command of the run does {name} anew") from error

    def _sound(self, name: str) -> dict[str, Any] | None:
        path = self.path / f"{name}.json"
        sealed = read_json(path)
        if sealed is None:
            return None
        if sealed and not {_SEAL, _RECORD} & sealed.keys() and _is_record(sealed):
            return sealed  # of an earlier version
        record, arrays = sealed.get(_RECORD), path.with_suffix(".npz")
        if not isinstance(record, dict) or sealed.get(_SEAL) != _seal(record, arrays):
            raise UserError(f"{path}: it or its arrays are not as they were written")
        return record

    @property
    def undone(self) -> bool:
        """Whether a phase waits to be finished again."""
        return bool(self._undone)

    def undo(self, name: str) -> None:
        """Lets a phase count as not done until it is finished again; no file changes."""
        self._undone.add(name)

    def remove_undone(self) -> None:
        """Removes the records of phases that wait to be finished again.

        Raises:
          UserError: the directory cannot be written.
        """
        with write_errors(self.path):
            for name in sorted(self._undone):
                (self.path / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Returns the names of the phases that have a record, sound or not."""
        return sorted(path.stem for path in self.path.glob("*.json"))

    def all(self) -> dict[str, dict[str, Any]]:
        """Returns what every phase that is done has left."""
        found = {name: self.find(name) for name in self.names()}
        return {name: record for name, record in found.items() if record is not None}

    def finish(
        self, name: str, record: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        """Marks a phase as done, with a JSON record and per-user arrays.

        Raises:
          UserError: the directory cannot be written.
        """
        path = self.path / f"{name}.npz"
        self._undone.discard(name)
        if processes.is_first():
            with write_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            if arrays:
                atomic_savez(path, **arrays)
            record = json.loads(json.dumps(record))
            sealed = {_SEAL: _seal(record, path), _RECORD: record}
            atomic_write_text(path.with_suffix(".json"), json.dumps(sealed, indent=2))
        processes.barrier(f"finished {path}")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the per-user arrays of a phase, empty where it has none."""
        return read_arrays(self.path / f"{name}.npz")


def _is_record(found: dict[str, Any]) -> bool:
    """Whether an object has what every phase leaves: of a model, or of preferences."""
    model = found.get("model", {"key": "", "name": ""})
    return (
        isinstance(found.get("seconds", 0.0), int | float)
        and isinstance(found.get("effects", {}), dict)
        and isinstance(model, dict)
        and all(isinstance(model.get(name), str) for name in ("key", "name"))
    )


def _seal(record: dict[str, Any], arrays: Path) -> str:
    """The checksum of a phase: of its record and, where it has them, of its arrays."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    if arrays.is_file():
        with read_errors(arrays), arrays.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
