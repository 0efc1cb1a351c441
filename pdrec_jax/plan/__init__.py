"""What a job would need on devices that are not here: ``python -m pdrec_jax.plan``."""
