"""Adapters: this package's models as other libraries expect models."""
