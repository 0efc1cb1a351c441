"""Saving and restoring through Orbax: the only module that imports it.

A ``Store`` is a directory with named slots. A slot holds the newest of its saves, a tree of arrays
and a JSON value together; Orbax writes to a temporary directory and renames it, so a save that was
cut short is never seen.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pdrec_jax import memory
from pdrec_jax.errors import UserError

# Orbax reports every save and restore at INFO, absent optional metadata as warnings, and logs the
# traceback of an error that it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Tree = Any


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None)
    )


class Store:
    """Checkpoints of one stage.

    Args:
      directory: made on the first save.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()

    def _manager(self, slot: str) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, create=True, enable_async_checkpointing=False
        )
        # Without named handlers a save's metadata cannot be read back.
        # Of what is saved one gigabyte at a time is copied.
        tree = ocp.StandardCheckpointHandler(save_concurrent_gb=1)
        handlers = {"tree": tree, "meta": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.directory / slot, options=options, item_handlers=handlers)

    def step(self, slot: str) -> int | None:
        """Returns the step of the slot's newest complete save, None where there is none."""
        if not (self.directory / slot).is_dir():
            return None
        with self._manager(slot) as manager:
            return manager.latest_step()

    def save(self, slot: str, step: int, tree: Tree, meta: dict[str, Any]) -> None:
        """Saves a tree of arrays and a JSON value; the slot's former save goes after it.

        Args:
          slot: name within the store.
          step: larger than the slot's former one.
          tree: arrays.
          meta: JSON.

        Raises:
          UserError: the disk is full; the former save is intact.
        """
        try:
            with self._manager(slot) as manager:
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
                    ),
                )
                manager.wait_until_finished()
        except Exception as error:
            self._sweep(slot)
            if is_disk_full(error):
                raise UserError(
                    f"{self.directory / slot}: disk full while saving step {step}; "
                    "free some space and run the same command again to resume"
                ) from error
            raise
        # The threads that write copy in pieces, of which their heaps keep many.
        memory.release()

    def _sweep(self, slot: str) -> None:
        """Removes what a save that failed has left, which could keep the disk full."""
        for left in (self.directory / slot).glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.directory / slot).rmdir()  # of a first save; refused where a former one is left

    def restore(self, slot: str, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """Restores the slot's newest save into the shapes, types and shardings of ``like``.

        Args:
          slot: name within the store.
          like: a tree of arrays or of ``ShapeDtypeStruct``.

        Raises:
          UserError: nothing saved, broken files, or a tree of another structure, shape or type.
        """
        place = self.directory / slot
        step = self.step(slot)
        if step is None:
            raise UserError(f"{place}: no checkpoint here")
        with self._broken(slot, step), self._manager(slot) as manager:
            self._check(place, manager, step, like)
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    tree=ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        return restored["tree"], restored["meta"]

    def restore_meta(self, slot: str) -> dict[str, Any]:
        """Returns the JSON value of the slot's newest save alone."""
        step = self.step(slot)
        if step is None:
            raise UserError(f"{self.directory / slot}: no checkpoint here")
        with self._broken(slot, step), self._manager(slot) as manager:
            restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    @contextlib.contextmanager
    def _broken(self, slot: str, step: int) -> Iterator[None]:
        """Turns what Orbax raises at files that are cut or gone into one line."""
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.directory / slot}: the checkpoint of step {step} is broken, remove it and "
                f"run the same command again ({reason[:200]})"
            ) from error

    def _check(self, place: Path, manager: ocp.CheckpointManager, step: int, like: Tree) -> None:
        """Compares names, shapes and types, since Orbax would pad or cast some differences."""
        saved = manager.item_metadata(step)["tree"]
        saved = getattr(saved, "tree", saved)
        found = _leaves(saved)
        expected = _leaves(like)
        for name in sorted(expected.keys() | found.keys()):
            if name not in found or name not in expected or found[name] != expected[name]:
                raise UserError(
                    f"{place}: checkpoint of another model: {name} is "
                    f"{found.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
                )

    def delete(self, slot: str) -> None:
        """Removes a slot, if it is there."""
        shutil.rmtree(self.directory / slot, ignore_errors=True)


def _leaves(tree: Tree) -> dict[str, str]:
    """Names each leaf by its path, with its shape and type as text."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = {}
    for path, leaf in leaves:
        parts = (getattr(p, "key", getattr(p, "idx", getattr(p, "name", p))) for p in path)
        names[".".join(map(str, parts))] = f"{tuple(leaf.shape)} {np.dtype(leaf.dtype).name}"
    return names


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that no space is left."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error) or "RESOURCE_EXHAUSTED: Error writing" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
