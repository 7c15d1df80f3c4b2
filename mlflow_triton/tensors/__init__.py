"""Tensors: one table of datatypes, and what it takes to fit a caller's values to a model. No I/O."""
