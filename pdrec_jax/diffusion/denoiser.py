"""The denoiser: a multilayer perceptron over the interaction vector (DiffRec, Wang et al., 2023).

Only its first and last layer see the catalogue. Both keep one row per slot ([I, H]), so that an
item's weights are contiguous (a sparse vector's product is an embedding-bag sum, the score of a few
items is a gather) and the slot axis can be sharded.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

BIAS_STDDEV = 0.001

# Parameters outside a module: nested plain dictionaries of arrays.
Params = dict[str, Any]


def timestep_embedding(t: Array, size: int, max_period: float = 10_000.0) -> Array:
    """Sinusoidal embedding of timesteps (Vaswani et al., 2017): cosines, then sines.

    Args:
      t: [B] int32.
      size: width; an odd one ends with a zero.
      max_period: the longest wavelength over 2 pi.

    Returns:
      [B, size] float32.
    """
    half = size // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / max(half, 1))
    angles = t[:, None].astype(jnp.float32) * frequencies[None, :]
    pad = jnp.zeros((t.shape[0], size - 2 * half), jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), pad], axis=-1)


class Dense(nnx.Module):
    """An affine layer with the reference's initial values: Xavier normal, biases of 0.001.

    ``rows_first`` keeps the kernel as [outputs, inputs].
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, rows_first: bool = False):
        shape = (outputs, inputs) if rows_first else (inputs, outputs)
        stddev = (2.0 / (inputs + outputs)) ** 0.5
        self.rows_first = rows_first
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(BIAS_STDDEV * jax.random.normal(rngs.params(), (outputs,)))

    def __call__(self, x: Array) -> Array:
        """Takes x [B, inputs] to [B, outputs]."""
        kernel = self.kernel[...]
        return jnp.dot(x, kernel.T if self.rows_first else kernel) + self.bias[...][None, :]


class Denoiser(nnx.Module):
    """f(x_t, t): predicts x_0 or the noise from a noisy interaction vector.

    ``f = readout(trunk(project(x), t))``: ``project`` and ``readout`` are linear and see the
    catalogue, ``trunk`` lives in H dimensions. Input dropout is the caller's (it belongs to
    training, and the sparse path needs the mask).

    Args:
      slots: I, the length of the interaction vector.
      hidden: widths of the reference's ``dims``; the encoder half runs through them in reverse, the
        decoder half forwards: (200, 600) gives I-600-200-600-I.
      embedding_size: width of the timestep embedding, even or odd.
      normalise: divide each input vector by its L2 norm.
      rngs: source of the initial values.
    """

    def __init__(
        self,
        slots: int,
        hidden: tuple[int, ...],
        embedding_size: int,
        *,
        normalise: bool = False,
        rngs: nnx.Rngs,
    ):
        self.embedding_size = embedding_size
        self.normalise = normalise
        widths = tuple(reversed(hidden)) + tuple(hidden[1:])
        first = Dense(slots + embedding_size, widths[0], rngs=rngs)
        kernel = first.kernel[...]
        self.timestep = Dense(embedding_size, embedding_size, rngs=rngs)
        self.item_kernel = nnx.Param(kernel[:slots])
        self.time_kernel = nnx.Param(kernel[slots:])
        self.first_bias = nnx.Param(first.bias[...])
        self.middle = nnx.List([Dense(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.output = Dense(widths[-1], slots, rngs=rngs, rows_first=True)

    def prepare(self, x: Array, over: str | None = None) -> Array:
        """Applies the input normalisation, if any, to x [B, I], or to a device's part of it.

        ``over`` names the axis of the mesh that the slots are split over.
        """
        if not self.normalise:
            return x
        # The floor is torch's: an empty vector stays zero and its gradient finite.
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        if over is not None:
            square = jax.lax.psum(square, over)
        return x / jnp.maximum(jnp.sqrt(jnp.maximum(square, 1e-30)), 1e-12)

    def project(self, x: Array) -> Array:
        """Takes x [B, I] to z = x W_x, [B, H]."""
        return jnp.dot(x, self.item_kernel[...])

    def time_term(self, t: Array) -> Array:
        """What the timesteps t [B] add to z: e_t, [B, H], the first bias included."""
        embedding = self.timestep(timestep_embedding(t, self.embedding_size))
        return jnp.dot(embedding, self.time_kernel[...]) + self.first_bias[...][None, :]

    def trunk(self, z: Array, t: Array) -> Array:
        """Takes z [B, H] and t [B] to the last hidden layer h [B, H']."""
        h = jnp.tanh(z + self.time_term(t))
        for layer in self.middle:
            h = jnp.tanh(layer(h))
        return h

    def readout(self, h: Array) -> Array:
        """Takes h [B, H'] to the output [B, I]."""
        return self.output(h)

    def __call__(self, x: Array, t: Array) -> Array:
        """Evaluates f at x [B, I] and t [B], without dropout."""
        return self.readout(self.trunk(self.project(self.prepare(x)), t))


def make_denoiser(
    num_slots: int, hidden: tuple[int, ...], embedding_size: int, *, normalise: bool, seed: int
) -> tuple[Any, Params]:
    """Initialises a denoiser.

    Args:
      num_slots: I.
      hidden: see ``Denoiser``.
      embedding_size: see ``Denoiser``.
      normalise: see ``Denoiser``.
      seed: of the initial values.

    Returns:
      its static structure, and its parameters as plain dictionaries.
    """
    module = Denoiser(
        num_slots, hidden, embedding_size, normalise=normalise, rngs=nnx.Rngs(params=seed)
    )
    graph, state = nnx.split(module)
    return graph, nnx.to_pure_dict(state)


def bind(graph: Any, params: Params) -> Denoiser:
    """Puts parameters into the structure that ``make_denoiser`` returned."""
    return nnx.merge(graph, params)


def structure(make: Callable[[], tuple[Any, Params]]) -> Any:
    """Returns the static structure of a model without allocating its parameters.

    Args:
      make: returns the structure and the parameters, as ``make_denoiser`` does.
    """
    found = {}

    def trace() -> Params:
        found["graph"], params = make()
        return params

    jax.eval_shape(trace)
    return found["graph"]
