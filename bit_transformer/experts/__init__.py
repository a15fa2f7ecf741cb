"""Adaptive predictors of bits, which the transformer mixes."""
