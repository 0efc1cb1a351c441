"""Sizes of the work that is timed; those of the paper's Toy where nothing else is said.

Nothing here needs JAX, so that a mistyped flag is answered at once.
"""

import dataclasses
from typing import Any


def _size(default: int | float, least: int | float, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"least": least, "meaning": meaning})


ENCODERS = ("sasrec", "gru4rec", "cl4srec")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the work is; each field is a flag of its own name.

    ``metadata`` of a field has its meaning, and the least value that is allowed.
    """

    users: int = _size(7_996, 20, "users of the simulated log")
    items: int = _size(37_868, 200, "target items")
    source_items: int = _size(11_735, 0, "items of the second domain, slots that stay empty")
    hidden: int = _size(1_000, 1, "H, width of the denoiser")
    noise_steps: int = _size(10, 1, "T, diffusion steps")
    nonzeros: int = _size(12, 1, "of a user's vector in stage reverse")
    noise_fraction: float = _size(0.125, 0.001, "share of slots in the noise's window, at most 1")
    error_fraction: float = _size(0.125, 0.001, "the same of the error's window")
    reverse_batch: int = _size(128, 1, "users a batch in stage reverse")
    diffusion_batch: int = _size(400, 1, "users a batch in stage diffusion_step")
    encoder_batch: int = _size(128, 1, "users a batch in stage encoder_step")
    width: int = _size(64, 1, "D, width of the encoder")
    blocks: int = _size(2, 1, "layers of the encoder")
    max_length: int = _size(200, 2, "L, events of a history, and cells of a padded row")
    steps: int = _size(5, 1, "training steps in one timed call")
    # The log does not depend on it, so sizes that differ in it alone share a workload.
    encoder: str = dataclasses.field(
        default="all",
        compare=False,
        metadata={"choices": (*ENCODERS, "all"), "meaning": "encoder of its two stages"},
    )
    product: int = _size(2_048, 1, "side of the matrices whose product is the ceiling; GPU: 8192")

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that are timed."""
        return ENCODERS if self.encoder == "all" else (self.encoder,)

    @property
    def slots(self) -> int:
        """Slots of an interaction vector over both domains and the padding id."""
        return 1 + self.items + self.source_items

    @property
    def of_toy(self) -> bool:
        """Whether users and items are those of the Toy logs, which can then stand in for them."""
        return all(
            getattr(self, name) == getattr(Sizes, name)
            for name in ("users", "items", "source_items")
        )
