"""Recommendations from a trained run: external ids in and out, any number of users."""
