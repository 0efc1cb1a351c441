"""Models of the PyTorch reference, to and from this package's checkpoints; torch is not needed."""
