"""Run records in SQLite: what was trained, how, and how it went. Nothing here imports torch."""
