"""What training and ranking ask of an encoder."""

import inspect
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pdrec_jax.data.batches import PACKED, Layout
from pdrec_jax.encoders.ends import Ends
from pdrec_jax.encoders.layers import Rows


class Encoder(nnx.Module):
    """A sequential encoder: packed histories in, a state per position out.

    A subclass is made from (config section ``encoder``, number of items I, ``rngs=``), and must
    have an ``item_embedding`` and a ``__call__``. All else has a default.

    Attributes:
      item_embedding: [I + 1, D] or with more rows behind; row 0 is the padding id.
      layout: how histories lie in the rows that it gets.
      ends_of_views: whether the ``own_loss`` of the same class reads nothing of a view but the
        state of each history's last cell; a view has at most one history of a user then.
    """

    layout: ClassVar[Layout] = PACKED
    ends_of_views: ClassVar[bool] = False
    item_embedding: nnx.Param

    def __call__(self, vectors: Array, rows: Rows, key: Array | None = None) -> Array:
        """Encodes the rows of one length.

        A cell's state may depend only on the cells before it in its segment and on itself.

        A subclass may have one more argument, ``ends=None``, see ``encode_to_ends``.

        Args:
          vectors: [R, L, D], the embedded items.
          rows: R rows of L cells.
          key: for dropout; None in evaluation.

        Returns:
          states [R, L, D]: what each cell's history, itself included, predicts next.
        """
        raise NotImplementedError

    def encode(
        self, vectors: Sequence[Array], rows: Sequence[Rows], key: Array | None
    ) -> list[Array]:
        """Encodes a batch, the rows of all lengths; an encoder may have a use for them together.

        Args:
          vectors: of each group [R, L, D], the embedded items.
          rows: of each group, in the order of ``layout.row_lengths``.
          key: see ``__call__``.

        Returns:
          states of each group, [R, L, D].
        """
        keys = _keys(key, len(rows))
        return [self(*group) for group in zip(vectors, rows, keys, strict=True)]

    def encode_to_ends(
        self,
        vectors: Sequence[Array],
        rows: Sequence[Rows],
        key: Array | None,
        ends: Sequence[Ends],
    ) -> list[Array]:
        """``encode``, where some rows are read at the last cell of each history alone.

        It asks for no more where ``__call__`` has an argument ``ends``, and ``encode`` is not the
        encoder's own.

        Args:
          vectors: see ``encode``.
          rows: see ``encode``.
          key: see ``encode``.
          ends: of each group, which rows these are.

        Returns:
          states of each group, [R, L, D]; of those rows the cells but the last ones may hold any.
        """
        own = type(self).encode is not Encoder.encode
        if own or "ends" not in inspect.signature(self.__call__).parameters:
            return self.encode(vectors, rows, key)
        call: Callable[..., Array] = self
        groups = zip(vectors, rows, _keys(key, len(rows)), ends, strict=True)
        return [call(*group, ends=some) for *group, some in groups]

    @property
    def reads_ends(self) -> bool:
        """Whether ``ends_of_views`` is of the class whose ``own_loss`` this encoder has."""
        owner = next(kind for kind in type(self).__mro__ if "own_loss" in vars(kind))
        return bool(vars(owner).get("ends_of_views", False))

    def views(self, rows: Rows, key: Array) -> tuple[Rows, ...]:
        """More rows to encode in a training step, for ``own_loss``.

        Args:
          rows: R rows of L cells, the histories of the step.
          key: of this step and group.

        Returns:
          any number of rows [R', L], always the same number.
        """
        del rows, key
        return ()

    def own_loss(self, states: Sequence[Array], views: Sequence[Rows], users: Array) -> Array:
        """What is added to the loss of a training step, [].

        Args:
          states: of each view [C, D], the cells of all groups laid end to end.
          views: of each view [C].
          users: [B], who each history of the batch is of, in numbers that mean nothing else; a user
            may be drawn twice. A cell's ``segment`` is below B unless the cell is empty.
        """
        del states, views, users
        return jnp.zeros(())


def _keys(key: Array | None, groups: int) -> list[Array | None]:
    """A key for each group of rows."""
    return [None if key is None else jax.random.fold_in(key, n) for n in range(groups)]
