"""Adaptive predictors of bits, which the transformer mixes."""

STATE_VERSION = 1
"""Of the bank's arithmetic: a cache or a bank of another one is not used. Here, so that asking loads no numba."""
