"""Comparisons: many trainings under one budget, tested against each other, and the report of them."""
