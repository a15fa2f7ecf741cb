"""Run records in SQLite: settings, metrics and results of trainings. Does not import torch."""
