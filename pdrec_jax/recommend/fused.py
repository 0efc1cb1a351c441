"""Two models as one: the weighted sum of their scores.

The scores of each are first divided by their standard deviation over a user's whole catalogue, so
that one weight serves all users and both kinds of models (the weighted CombSUM of Fox and Shaw,
"Combination of Multiple Searches", TREC-2, 1994, with scores standardised; a mean that is the same
for all items changes no ranking, and is left in). A sum of inner products is an inner product, so
what two models make of a user and an item is a model again, with the vectors of both side by side.

Letters: B users, I items, W width of the vectors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.catalogue import Catalogue, load_catalogue
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text, read_json
from pdrec_jax.recommend.histories import Histories
from pdrec_jax.recommend.models import RECIPE, Trained, VectorModel, choose, load_model
from pdrec_jax.workdir import Workdir

KEY = "fused"


class Standardised:
    """A model whose scores of a user have variance 1 over the catalogue; a ``VectorModel``.

    Args:
      model: with vectors.
      num_items: I, target items; only they count, and only they have vectors here.
    """

    def __init__(self, model: VectorModel, num_items: int) -> None:
        self._model, self._num_items = model, num_items
        self._covariance = np.asarray(_covariance(self.item_vectors()))

    def item_vectors(self) -> Array:
        """Returns the vectors of the target items, [I + 1, W]; row 0 is the padding item's.

        Made anew each time: kept, they would lie in memory beside what is made of them.
        """
        return self._model.item_vectors()[: self._num_items + 1]

    def user_vectors(self, histories: Histories) -> np.ndarray:
        """Returns the vectors of users with at least one event each, [B, W].

        They are 0 where all items have one score: that one says nothing of any.
        """
        vectors = self._model.user_vectors(histories)
        variance = np.einsum("bv,vw,bw->b", vectors, self._covariance, vectors, optimize=True)
        scale = np.sqrt(np.maximum(variance, 0.0))
        return np.divide(
            vectors, scale[:, None], out=np.zeros_like(vectors), where=scale[:, None] != 0
        )


class Fused:
    """The sum of two models' scores; a ``VectorModel``.

    Args:
      first: of the two.
      second: likewise.
      weight: of the second, at least 0; the first one's is 1.
    """

    def __init__(self, first: Standardised, second: Standardised, weight: float) -> None:
        self._parts, self._weight = (first, second), weight

    def item_vectors(self) -> Array:
        """Returns the vectors of the target items, [I + 1, W]; row 0 is the padding item's."""
        return jnp.concatenate([part.item_vectors() for part in self._parts], axis=1)

    def user_vectors(self, histories: Histories) -> np.ndarray:
        """Returns the vectors of users with at least one event each, [B, W]."""
        first, second = (part.user_vectors(histories) for part in self._parts)
        return np.concatenate([first, np.float32(self._weight) * second], axis=1)


@jax.jit
def _covariance(items: Array) -> Array:
    """Covariance of the items' vectors, [W, W], without the padding item."""
    vectors = items[1:] - jnp.mean(items[1:], axis=0, keepdims=True)
    return jnp.dot(vectors.T, vectors, precision=jax.lax.Precision.HIGHEST) / len(vectors)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a fused model is made of, as it lies beside its results.

    Attributes:
      name: as tables show it.
      workdirs: of the two runs, of one seed each.
      keys: of their models.
      figures: NDCG@10 of each alone, by which a model that was trained anew is told.
      weight: of the second.
      figure: NDCG@10 that chose the weight.
      chosen_by: ``validation``, or ``test`` where the protocol has the test choose.
    """

    name: str
    workdirs: tuple[str, str]
    keys: tuple[str, str]
    figures: tuple[float, float]
    weight: float
    figure: float
    chosen_by: str

    def save(self, folder: Path) -> None:
        """Writes it to a directory.

        Raises:
          UserError: it cannot be written.
        """
        atomic_write_text(folder / RECIPE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Recipe | None:
        """Reads that of a directory; None where there is none.

        Raises:
          UserError: it is damaged.
        """
        found = read_json(folder / RECIPE)
        if found is None:
            return None
        try:
            (one, other), (key, other_key) = found["workdirs"], found["keys"]
            of_one, of_other = found["figures"]
            numbers = [float(each) for each in (of_one, of_other, found["weight"], found["figure"])]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("a number is not finite")
            return cls(
                name=str(found["name"]),
                workdirs=(str(one), str(other)),
                keys=(str(key), str(other_key)),
                figures=(numbers[0], numbers[1]),
                weight=numbers[2],
                figure=numbers[3],
                chosen_by=str(found["chosen_by"]),
            )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{folder / RECIPE}: not what `fuse` writes ({error})") from error

    def load(self, folder: Path, block: int) -> tuple[list[Workdir], Trained, Catalogue, Fused]:
        """Loads both models from where they were trained.

        Args:
          folder: where the recipe lies.
          block: users that are given at once, at most.

        Returns:
          the two runs, what they are as one model of the first, its catalogue, and the model.

        Raises:
          UserError: a run is gone, damaged, of another log or was trained anew.
        """
        own = Workdir.open(folder)
        places, parts, catalogues = [], [], []
        for path, key, figure in zip(self.workdirs, self.keys, self.figures, strict=True):
            try:
                place = Workdir.open(path)
                place.require_log(own.data["files"])
                trained = choose(place, key)
            except UserError as error:
                raise UserError(f"{error} (a part of {folder}, which `fuse` makes anew)") from error
            if trained.figure != figure:
                raise UserError(
                    f"{path}: {key} was trained anew since {folder} was made of it; fuse them again"
                )
            catalogue = load_catalogue(place.path)
            model = load_part(place, trained, catalogue, block)
            parts.append(Standardised(model, catalogue.num_target_items))
            places.append(place)
            catalogues.append(catalogue)
        trained = Trained(KEY, self.name, self.figure, self.chosen_by)
        return places, trained, catalogues[0], Fused(parts[0], parts[1], self.weight)


def load_part(place: Workdir, trained: Trained, catalogue: Catalogue, block: int) -> VectorModel:
    """``models.load_model``, whose complaints then name the run.

    Raises:
      UserError: see there.
    """
    try:
        return load_model(place, trained, catalogue, block)
    except UserError as error:
        raise UserError(f"{place.path}: {error}") from error
