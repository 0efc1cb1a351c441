"""The paper's Book (Douban): TI-DiffRec, then SASRec without and with the plugins.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/book.py
  python -m pdrec_jax.main --config=configs/book.py:variant=paper

The values are those of the public code's README, which has a learning rate and an omega_r for
SASRec and others for GRU4Rec (CL4SRec gets SASRec's); the variant ``paper`` takes those of the
paper's Sec. 5.1 for all. Of the auxiliary log, Music, the
column ``order`` is read, which says where its records stand among Book's: that is all that decides
on the users. Without the logs the job runs, shortened, on a simulated one.
"""

from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.settings import default_config


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    variant = variant.removeprefix("variant=")
    config = default_config()
    config.name = "book"
    # As the public code's samplers deliver batches: docs/results.md.
    config.reference_overrides = (("encoder.batch_repeat", 3),)
    config.data.target = "douban_book.inter"
    config.data.auxiliary, config.data.auxiliary_time = "douban_music.inter", "order"
    config.data.ids = "integer"
    config.data.origin = (
        "python -m pdrec_jax.prepare --dataset=douban --out=data makes them of the files that the "
        "paper's authors publish on GitHub (hulkima/PDRec)"
    )

    diffusion = config.diffusion
    diffusion.schedule = "linear-var"
    diffusion.steps = 10
    diffusion.noise_scale, diffusion.noise_min, diffusion.noise_max = 0.01, 0.0005, 0.01
    diffusion.hidden, diffusion.embedding_size = (256,), 8
    diffusion.w_min, diffusion.w_max = 0.3, 1.0
    diffusion.learning_rate, diffusion.weight_decay = 5e-5, 0.5
    diffusion.batch_size = 400
    diffusion.patience = 20  # as on Toy

    config.encoder.temperature = 10.0
    config.dpa.coarse, config.dpa.fine, config.dpa.weight = 100, 1, 0.01
    config.hbr.clip, config.hbr.scale, config.nns.first_fraction = 3.0, 4.0, 0.8
    if variant == "paper":
        config.encoder.learning_rate, config.hbr.rank_weight = 0.005, 0.3
    elif variant == "readme":
        config.encoder.learning_rate, config.hbr.rank_weight = 0.001, 0.5
        config.gru4rec_overrides = (("encoder.learning_rate", 0.01), ("hbr.rank_weight", 0.3))
    else:
        raise UserError(f"variant 'paper' or 'readme' is expected, got {variant!r}")

    simulation = config.simulation
    simulation.num_users, simulation.num_items, simulation.num_source_items = 1000, 3000, 2500
    simulation.mean_length = 42.2
    simulation.overrides = (
        ("diffusion.hidden", (200,)),
        ("diffusion.learning_rate", 2e-3),
        ("diffusion.epochs", 20),
        ("encoder.epochs", 30),
        ("encoder.first_evaluation", 2),
        ("encoder.evaluate_every", 2),
    )
    return config
