"""Times each stage's fast path beside its slow twin; `python -m pdrec_jax.benchmark --help`."""
