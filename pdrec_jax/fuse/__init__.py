"""Ranking by the sum of two models' scores, and what a weight chosen on validation makes of it."""
