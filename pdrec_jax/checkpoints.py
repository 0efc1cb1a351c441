"""Saving and restoring through Orbax: the only module that imports it.

A ``Store`` is a directory with named slots. A slot holds the newest two of its saves, each a tree
of arrays and a JSON value together. A save that was cut short is never seen, and one that was
damaged later is passed over for the one before it. A save may go on in the background.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from pdrec_jax import manifest, memory, processes
from pdrec_jax.errors import UserError, warn
from pdrec_jax.files import beside
from pdrec_jax.interrupts import deferred
from pdrec_jax.saved_trees import check_same

# Orbax reports every save and restore at INFO, absent optional metadata as warnings, and logs the
# traceback of an error that it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Tree = Any

_STEP = re.compile("0|[1-9][0-9]*")
_ASIDE = ".saving.tmp"  # where a save is made
_AT_A_TIME = 256_000_000  # bytes of what is saved that are copied at a time, at least
_KEPT = 2  # saves a slot
_ABSENT, _UNREADABLE = -1, -2  # what the first process tells instead of a step


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    where = getattr(leaf, "sharding", None)
    if where is None and jax.process_count() == 1:
        # Else Orbax asks for the devices that saved it.
        where = SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)


def _on_host(leaf: Any) -> np.ndarray:
    """What Orbax restores to an array of the host, without one as large to ask by."""
    return np.broadcast_to(np.zeros((), leaf.dtype), np.shape(leaf))


class NoCheckpoint(UserError):
    """No save is there, or none that is whole."""


class Store:
    """Checkpoints of one stage.

    A save is made aside, sealed by a manifest with the checksum of each of its files, and then
    renamed to ``SLOT/STEP``: what has that name is whole, or was damaged later, which reading
    finds.

    Args:
      directory: made on the first save.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()
        self._going: _Going | None = None
        self._broken: dict[str, set[int]] = {}  # saves of a slot that reading has passed over

    def _manager(
        self, place: Path, largest: int = 0, *, behind: bool = False
    ) -> ocp.CheckpointManager:
        """Opens a directory of saves.

        Args:
          place: the directory.
          largest: size of the largest array, in bytes.
          behind: save in the background.
        """
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=behind)
        # A few arrays are copied at a time. Orbax takes a limit in gigabytes, and refuses an array
        # that reaches it.
        limit: Any = max(_AT_A_TIME, 2 * largest) / 1e9
        # Without named handlers a save's metadata cannot be read back.
        handlers = {
            "tree": ocp.StandardCheckpointHandler(save_concurrent_gb=limit),
            "meta": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(place, options=options, item_handlers=handlers)

    def step(self, slot: str) -> int | None:
        """Returns the step of the slot's newest save, None where there is none."""
        self.finish()
        steps = _steps(self.directory / slot) if processes.is_first() else []
        (step,) = processes.of_first(steps[0] if steps else _ABSENT)
        return None if step == _ABSENT else step

    def save(
        self, slot: str, step: int, tree: Tree, meta: dict[str, Any], *, behind: bool = False
    ) -> None:
        """Saves a tree of arrays and a JSON value; of the slot's former saves the newest stays.

        Saves of the same or a later step are of a course that was given up, and go. So do those
        that this store has found to be broken.

        Args:
          slot: name within the store.
          step: at least 0.
          tree: arrays, which may be donated afterwards.
          meta: JSON.
          behind: return once the arrays are copied to the host, and do the rest in the background.
            ``finish``, which everything else that reads or changes the store begins with, waits for
            it, and raises what it has met.

        Raises:
          UserError: the disk is full or refuses the files; the former saves are intact.
        """
        self.finish()
        place = self.directory / slot
        going = _Going(place, step, self._broken.pop(slot, set()))
        with going.failing(), deferred():
            if processes.is_first():
                shutil.rmtree(going.aside, ignore_errors=True)  # of a run that was killed
            processes.barrier(f"saving {place} {step}")
            largest = max((leaf.nbytes for leaf in jax.tree.leaves(tree)), default=0)
            if behind and jax.default_backend() == "cpu":
                # There Orbax takes an array's own memory for its copy on the host, and the next
                # step, to which the array is donated, would write into it.
                tree = jax.tree.map(lambda leaf: leaf.copy(), tree)
            going.manager = self._manager(going.aside, largest, behind=behind)
            going.manager.save(
                step,
                args=ocp.args.Composite(
                    tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
                ),
            )
        self._going = going
        if behind:
            going.start()
        else:
            self.finish()

    def finish(self, *, meet: bool = True) -> None:
        """Waits for a save that goes on in the background; of several processes all must.

        Args:
          meet: wait for the other processes as well.

        Raises:
          UserError: see ``save``.
        """
        going, self._going = self._going, None
        if going is None:
            return
        with going.failing(), deferred():
            going.complete()
            if meet:
                # The others must not look before the name is there.
                processes.barrier(f"saved {going.place} {going.step}")
        # The threads that write copy in pieces, of which their heaps keep many.
        memory.release()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Does what ``finish`` does at the end of the block, after an error as well as it can."""
        try:
            yield
        except BaseException:
            # The others may be elsewhere, and never come to where this process would wait for them.
            with contextlib.suppress(Exception):
                self.finish(meet=False)
            raise
        self.finish()

    def restore(
        self, slot: str, like: Tree, *, on_host: bool = False
    ) -> tuple[Tree, dict[str, Any]]:
        """Restores the slot's newest whole save into the shapes, types and shardings of ``like``.

        Warns in one line where a newer one is broken, or where it cannot be told.

        Args:
          slot: name within the store.
          like: a tree of arrays or of ``ShapeDtypeStruct``.
          on_host: restore NumPy arrays, which no device holds in between.

        Raises:
          NoCheckpoint: nothing saved, or all that is there is broken.
          UserError: a tree of another structure, shape or type.
        """
        self.finish()
        place = self.directory / slot
        step, sealed = self._chosen(slot, tell=True)
        asked = jax.tree.map(_on_host if on_host else _abstract, like)
        with self._readable(slot, step, sealed), self._manager(place) as manager:
            saved = manager.item_metadata(step)["tree"]
            other = check_same(place, getattr(saved, "tree", saved), like)
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    # Rows that only fill up a mesh are cut off or come as zeros.
                    tree=ocp.args.StandardRestore(asked, strict=not other),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        return restored["tree"], restored["meta"]

    def fault(self, slot: str) -> str | None:
        """What is wrong with a slot none of whose saves is whole; for the first process.

        A slot without any save, which somebody may have removed to make room, has no fault.
        """
        self.finish()
        try:
            if _steps(self.directory / slot):
                self._choose(slot)
        except NoCheckpoint as error:
            return str(error)
        return None

    def restore_meta(self, slot: str) -> dict[str, Any]:
        """Returns the JSON value of the save that ``restore`` takes, and raises what it raises."""
        self.finish()
        step, sealed = self._chosen(slot)
        with self._readable(slot, step, sealed), self._manager(self.directory / slot) as manager:
            restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def _chosen(self, slot: str, tell: bool = False) -> tuple[int, bool]:
        """What ``_choose`` finds in the first process, which alone reads all files."""
        found: tuple[int, int] = (_ABSENT, 0)
        error: Exception | None = None
        if processes.is_first():
            try:
                found = self._choose(slot, tell)
            except NoCheckpoint as raised:
                error = raised
            except Exception as raised:  # the others wait for an answer
                found, error = (_UNREADABLE, 0), raised
        step, sealed = processes.of_first(*found)
        if step == _UNREADABLE:
            raise error or UserError(f"{self.directory / slot}: the first process cannot read it")
        if step == _ABSENT:
            raise error or NoCheckpoint(f"{self.directory / slot}: no checkpoint here")
        return step, bool(sealed)

    def _choose(self, slot: str, tell: bool = False) -> tuple[int, bool]:
        """The newest save that is whole by its manifest (True), else the newest without one."""
        place = self.directory / slot
        steps = _steps(place)
        if not steps:
            raise NoCheckpoint(f"{place}: no checkpoint here")
        faults = {}
        for step in steps:
            fault = manifest.fault(place / str(step))
            if fault is None:
                break
            faults[step] = fault
        else:
            unsealed = [step for step in steps if faults[step] == manifest.ABSENT]
            if not unsealed:
                raise NoCheckpoint(f"{place}: {_told(faults)}")
            # An earlier version wrote none; what it left is as good as Orbax can tell.
            step = unsealed[0]
        sealed = faults.pop(step, None) is None
        self._broken[slot] = set(faults)
        if tell and not sealed:
            warn(f"{place}: the checkpoint of step {step} has no manifest, it is not verified")
        if tell and faults:
            warn(f"{place}: {_told(faults)}; that of step {step} is used")
        return step, sealed

    @contextlib.contextmanager
    def _readable(self, slot: str, step: int, sealed: bool) -> Iterator[None]:
        """Turns what Orbax raises at files that it cannot make sense of into one line."""
        # What is as it was saved may be worth a look with the version that saved it.
        kind = UserError if sealed else NoCheckpoint
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise kind(
                f"{self.directory / slot}: the checkpoint of step {step} cannot be read "
                f"({reason[:200]})"
            ) from error

    def delete(self, slot: str) -> None:
        """Removes a slot, if it is there."""
        self.finish()
        if processes.is_first():
            _remove(self.directory / slot)
        processes.barrier(f"deleted {self.directory / slot}")


class _Going:
    """A save between the copying of its arrays and its name.

    Args:
      place: of the slot.
      step: of the save.
      broken: former saves, which must not take the place of a whole one.

    Attributes:
      aside: where it is made.
      manager: that writes it; None before.
    """

    def __init__(self, place: Path, step: int, broken: Set[int]):
        self.place, self.step, self.aside = place, step, place / _ASIDE
        self.broken = broken
        self.manager: ocp.CheckpointManager | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Lets a thread complete it."""
        self._thread = threading.Thread(target=self._run, name=f"save {self.place.name}")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write_and_name()
        except BaseException as error:
            self._error = error

    def complete(self) -> None:
        """Completes it, or waits until its thread has, and raises what that has met."""
        assert self.manager is not None
        if self._thread is None:
            self._write_and_name()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error
        self.manager.close()
        if processes.is_first():
            shutil.rmtree(self.aside, ignore_errors=True)

    def _write_and_name(self) -> None:
        """Waits for Orbax, whose processes meet without a collective; the first seals and names."""
        assert self.manager is not None
        self.manager.wait_until_finished()
        if not processes.is_first():
            return
        made = self.aside / str(self.step)
        manifest.seal(made)
        for former in _steps(self.place):
            if former >= self.step or former in self.broken:
                _remove(self.place / str(former))
        os.replace(made, self.place / str(self.step))
        manifest.sync(self.place)
        for former in _steps(self.place)[_KEPT:]:
            _remove(self.place / str(former))

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Tidies up after an error, and turns a full disk into one line."""
        try:
            yield
        except Exception as error:
            if self.manager is not None:
                with contextlib.suppress(Exception):
                    self.manager.close()
            if processes.is_first():
                shutil.rmtree(self.aside, ignore_errors=True)  # it could keep the disk full
            with contextlib.suppress(OSError):
                self.place.rmdir()  # of a first save; refused where a former one is left
            if is_disk_full(error):
                raise UserError(
                    f"{self.place}: disk full while saving step {self.step}; "
                    "free some space and run the same command again to resume"
                ) from error
            raise


def _steps(place: Path) -> list[int]:
    """Returns the steps of a slot's saves, the newest first."""
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return sorted((int(name) for name in names if _STEP.fullmatch(name)), reverse=True)


def _remove(path: Path) -> None:
    """Removes a directory, whose name goes first: a kill leaves no half of it in place."""
    going = beside(path)
    with contextlib.suppress(OSError):
        os.replace(path, going)
    shutil.rmtree(going, ignore_errors=True)


def _told(faults: dict[int, str]) -> str:
    """Names broken saves and what is wrong with the newest of them."""
    newest = next(iter(faults))
    others = f", so are {len(faults) - 1} older ones" if len(faults) > 1 else ""
    return f"the checkpoint of step {newest} is broken ({faults[newest]}){others}"


# As words, for the libraries that raise no OSError.
_FULL = ("No space left", "RESOURCE_EXHAUSTED: Error writing", "File too large")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that no more may be written."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(error) for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
