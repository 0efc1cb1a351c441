"""Interaction logs: from files or from the simulator, to splits, to batches."""
