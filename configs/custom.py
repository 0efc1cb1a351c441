"""A log of one's own, prepared first; its settings are those that suit its statistics.

  python -m pdrec_jax.prepare --input=log.csv --user=user --item=item --time=time --out=data/mine
  python -m pdrec_jax.main --config=configs/custom.py --config.data.path=data/mine

The settings stand in data/mine/report.txt; any --config.FIELD=VALUE wins over them. The plugins'
own, for which statistics say nothing, are the paper's. A log that needs no preparation can be named
with --config.data.target=FILE instead, and runs with the defaults.
"""

from ml_collections import ConfigDict

from pdrec_jax.settings import default_config


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default_config()
    config.name = "custom"
    config.data.source = "real"  # nobody who has a log wants a simulated one
    return config
