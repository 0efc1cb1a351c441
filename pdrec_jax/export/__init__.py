"""A trained encoder as an artifact that runs with jax and numpy alone."""
