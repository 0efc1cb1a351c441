"""Small diffusion models: the recorded one, and random ones of any shape."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.denoiser import Params, make_denoiser, structure
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.schedule import Schedule, make_schedule
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import Head, SplitBatch

# Of golden keys to ours. torch keeps [out, in]; our output layer does too.
PREFIXES = {"x0": "x0", "epsilon": "eps"}


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """Halves the time that these tests spend in the compiler, which is most of it.

    A module that overrides this fixture tests the code as users compile it.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def toy_schedule(steps: int = 10) -> Schedule:
    return make_schedule("linear-var", steps, noise_scale=0.01, noise_min=0.0005, noise_max=0.005)


def layers(weights: Any, prefix: str, slots: int) -> Params:
    """Our parameters from a state dict in torch's layout."""
    get = {key.removeprefix(prefix): value for key, value in weights.items()}
    first = get["in_layers.0.weight"].T
    return {
        "timestep": {"kernel": get["emb_layer.weight"].T, "bias": get["emb_layer.bias"]},
        "item_kernel": first[:slots],
        "time_kernel": first[slots:],
        "first_bias": get["in_layers.0.bias"],
        "output": {"kernel": get["out_layers.0.weight"], "bias": get["out_layers.0.bias"]},
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    """The recorded model of one target; `self["x"]` is an array under its prefix."""

    model: DiffusionModel
    params: Params
    golden: Any
    prefix: str

    def __getitem__(self, key: str) -> np.ndarray:
        return self.golden[f"{self.prefix}/{key}"]

    def layers(self, group: str) -> Params:
        """Recorded gradients or parameters, in our structure."""
        prefix = f"{self.prefix}/{group}/"
        found = {k: v for k, v in self.golden.items() if k.startswith(prefix)}
        return layers(found, prefix, self.model.num_slots)


@pytest.fixture
def tiny(goldens) -> Callable[..., Tiny]:
    """`tiny(target, **options)` is the recorded denoiser; options go to `DiffusionModel`."""

    def tiny(target: str, *, schedule: Schedule | None = None, **options: Any) -> Tiny:
        golden = goldens("dnn_tiny")
        graph = structure(lambda: make_denoiser(23, (7,), 4, normalise=False, seed=0))
        weights = {k: v for k, v in golden.items() if k.startswith("w/")}
        params = jax.tree.map(jnp.asarray, layers(weights, "w/", 23))
        model = DiffusionModel(graph, 23, schedule or toy_schedule(), target=target, **options)
        return Tiny(model, params, golden, PREFIXES[target])

    return tiny


@pytest.fixture
def random_model() -> Callable[..., tuple[DiffusionModel, Params]]:
    """`random_model(seed, slots, hidden, ..)` is a model with large biases, and its parameters."""

    def random_model(
        seed: int,
        slots: int = 37,
        hidden: tuple[int, ...] = (8,),
        embedding: int = 4,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> tuple[DiffusionModel, Params]:
        normalise = options.get("normalise", False)
        make = functools.partial(
            make_denoiser, slots, hidden, embedding, normalise=normalise, seed=seed
        )
        rng = np.random.default_rng(seed)

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            # The initial biases are so small that a forgotten one would not show.
            stddev = 0.2 if leaf.ndim == 1 else (2 / sum(leaf.shape)) ** 0.5
            return jnp.asarray(rng.normal(0, stddev, leaf.shape), jnp.float32)

        params = jax.tree.map(draw, jax.eval_shape(lambda: make()[1]))
        return DiffusionModel(structure(make), slots, schedule or toy_schedule(), **options), params

    return random_model


@pytest.fixture
def sparse() -> Callable[[np.ndarray], SparseBatch]:
    """`sparse(x)` is the batch of dense vectors x [B, I], with some unused tokens."""

    def sparse(x: np.ndarray) -> SparseBatch:
        rows, slots = np.nonzero(x)
        spare = 5
        return SparseBatch(
            np.pad(slots, (0, spare)).astype(np.int32),
            np.pad(rows, (0, spare), constant_values=len(x)).astype(np.int32),
            np.pad(x[rows, slots], (0, spare)).astype(np.float32),
        )

    return sparse


@pytest.fixture
def split(sparse) -> Callable[[np.ndarray, Head], SplitBatch]:
    """`split(x, head)` is the batch of dense vectors x [B, I], the head's slots apart."""

    def split(x: np.ndarray, head: Head) -> SplitBatch:
        inside = np.asarray(head.inside)
        return SplitBatch(sparse(x[:, inside]), sparse(np.where(inside[None, :], 0, x)))

    return split


@pytest.fixture
def random_vectors() -> Callable[..., np.ndarray]:
    """`random_vectors(seed, size, slots)`: sparse rows of 0 and .5 to 1, the first one empty."""

    def random_vectors(seed: int, size: int, slots: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x = np.where(rng.random((size, slots)) < 0.2, rng.uniform(0.5, 1, (size, slots)), 0)
        x[0], x[:, 0] = 0, 0
        return x.astype(np.float32)

    return random_vectors
