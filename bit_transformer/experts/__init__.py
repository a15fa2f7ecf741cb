"""Adaptive predictors of bits ("experts"), which the transformer mixes."""

STATE_VERSION = 1
"""Version of the bank's arithmetic. Caches and banks of another version are not used. Defined here because this module does not import numba."""
