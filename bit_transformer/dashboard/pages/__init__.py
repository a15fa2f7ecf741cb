"""The pages, one module each. Each has `register(desk)`, which adds it to the application."""

from __future__ import annotations

from bit_transformer.dashboard.pages import (
    checkpoints,
    compare,
    data,
    diffusion,
    new_run,
    playground,
    run,
    runs,
    settings,
)

PAGES = tuple(
    page.register for page in (runs, run, compare, new_run, playground, diffusion, data, checkpoints, settings)
)
