"""What a trained run keeps of its log so that it can be served: ids, popularity, places of files.

Letters: I items, n ids looked up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.splits import Split
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_savez, read_arrays

CATALOGUE = "catalogue.npz"


class IdIndex:
    """Finds ids by their text.

    Args:
        ids: `[n]` distinct ids, int64 or text.
    """

    def __init__(self, ids: NDArray) -> None:
        text = ids.astype(str)
        self._order = np.argsort(text, kind="stable")
        self._sorted = text[self._order]

    def find(self, wanted: NDArray) -> NDArray[np.int64]:
        """Places of ids.

        Args:
            wanted: `[n]` text; an integer is written as Python writes it.

        Returns:
            `[n]` places in `ids`, -1 where an id is not in them.
        """
        if not self._sorted.size or not wanted.size:
            return np.full(wanted.shape, -1)
        place = np.minimum(np.searchsorted(self._sorted, wanted), self._sorted.size - 1)
        return np.where(self._sorted[place] == wanted, self._order[place], -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that a run was trained on.

    Attributes:
        item_ids: `[I+1]` external ids, int64 or text; entry 0 fills the place of the padding id.
        num_target_items: items `1..num_target_items` can be recommended; the others are those of
            the source domain of a run that was trained on both.
        num_source_items: items of the source domain, trained on or not.
        popularity: `[I+1]` int64, events of each item, held-out ones included; of target items also
            those of users that the split drops.
        places: absolute paths of the logs, target first; empty for a simulated log.
    """

    item_ids: NDArray
    num_target_items: int
    num_source_items: int
    popularity: NDArray[np.int64]
    places: tuple[str, ...]

    @property
    def num_items(self) -> int:
        """`I`; the padding item does not count."""
        return len(self.item_ids) - 1

    @functools.cached_property
    def popular(self) -> NDArray[np.int32]:
        """`[num_target_items]` int32, the target items, the most popular first, ties by id."""
        counts = self.popularity[1 : self.num_target_items + 1]
        return (np.argsort(-counts, kind="stable") + 1).astype(np.int32)

    @functools.cached_property
    def _indices(self) -> tuple[IdIndex, IdIndex]:
        after = self.num_target_items + 1
        return IdIndex(self.item_ids[1:after]), IdIndex(self.item_ids[after:])

    @property
    def num_shared_ids(self) -> int:
        """External ids that items of both domains have."""
        target, _ = self._indices
        return int(np.sum(target.find(self.item_ids[self.num_target_items + 1 :].astype(str)) >= 0))

    def find(self, wanted: NDArray) -> NDArray[np.int32]:
        """Items by external id; an id that both domains have is the target's.

        Args:
            wanted: `[n]` text.

        Returns:
            `[n]` int32 in `1..I`, 0 for an unknown id.
        """
        target, source = (index.find(wanted) for index in self._indices)
        found = np.where(source >= 0, source + self.num_target_items + 1, 0)
        return np.where(target >= 0, target + 1, found).astype(np.int32)


def catalogue_of(split: Split, files: Sequence[Path] | None) -> Catalogue:
    """The catalogue of a run's data.

    Args:
        split: the data.
        files: its logs, None where it is simulated.
    """
    train = split.train
    heldout = np.concatenate([split.valid_items, split.test_items])
    popularity = train.popularity + np.bincount(heldout, minlength=train.num_items + 1)
    popularity[: train.num_target_items + 1] += split.dropped_popularity
    return Catalogue(
        train.item_ids,
        train.num_target_items,
        split.num_source_items,
        popularity,
        tuple(str(path.resolve()) for path in files or ()),
    )


def save_catalogue(workdir: Path, catalogue: Catalogue) -> None:
    """Writes the catalogue of a run to its directory, whole or not at all."""
    atomic_savez(
        workdir / CATALOGUE,
        item_ids=catalogue.item_ids,
        counts=np.array([catalogue.num_target_items, catalogue.num_source_items]),
        popularity=catalogue.popularity,
        places=np.array(catalogue.places, dtype=str),
    )


def load_catalogue(workdir: Path) -> Catalogue:
    """Reads the catalogue of a run.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = workdir / CATALOGUE
    if not path.is_file():
        raise UserError(
            f"{path}: not there; a run of an earlier version is expected to be called once more, "
            "by the command that trained it, which then writes the file"
        )
    arrays = read_arrays(path)
    try:
        target, source = arrays["counts"].tolist()
        found = Catalogue(
            arrays["item_ids"],
            target,
            source,
            arrays["popularity"],
            tuple(arrays["places"].tolist()),
        )
        whole = found.popularity.shape == found.item_ids.shape and target <= found.num_items
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: a catalogue is expected ({error})") from error
    if not whole:
        raise UserError(f"{path}: a catalogue is expected (its parts do not fit)")
    return found
