"""Ranks, metrics and the two protocols of comparison."""
