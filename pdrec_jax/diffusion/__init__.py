"""TI-DiffRec: a diffusion model over interaction vectors, and the preferences that it gives."""
