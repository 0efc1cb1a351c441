"""A step on packed rows against the public code's numbers, and against left-padded rows."""

CLOSE = {"rtol": 0, "atol": 1e-4}
PREFIX = "sasrec_embedding_source."
ALL = ("hbr", "nns", "dpa")
