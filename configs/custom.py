"""A log of one's own, prepared first; its settings are those that suit its statistics.

  python -m pdrec_jax.prepare --input=log.csv --user=user --item=item --time=time --out=data/mine
  python -m pdrec_jax.main --config=configs/custom.py --config.data.path=data/mine
  python -m pdrec_jax.main --config=configs/custom.py:paper --config.data.path=data/mine

The settings stand in data/mine/report.txt; any --config.FIELD=VALUE wins over them, and so does
what a file that sets config.data.path itself sets away from the defaults. The plugins' own, for
which statistics say nothing, are those that Toy's validation chose (under ``strict``), or the
paper's (variant ``paper``, and under ``reference``), where the log's number of candidates for DPA
is the most and not the number. A log that needs no preparation can be
named with --config.data.target=FILE instead, and runs with the defaults.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.settings import default_config


def get_config(variant: str = "tuned") -> ConfigDict:
    """Returns the config; ``variant`` is one of the above, with or without ``variant=``."""
    variant = variant.removeprefix("variant=")
    config = default_config()
    config.name = "custom"
    # As the public code's samplers deliver batches: docs/results.md.
    config.reference_overrides = (("encoder.batch_repeat", 3),)
    config.data.source = "real"  # nobody who has a log wants a simulated one
    if variant == "tuned":
        toy = runpy.run_path(str(Path(__file__).with_name("toy.py")))
        config.strict_overrides = toy["PLUGINS"]
    elif variant != "paper":
        raise UserError(f"variant 'tuned' or 'paper' is expected, got {variant!r}")
    return config
