"""HBR, DPA and NNS: one equation group of the paper a file, pure functions of arrays."""
