"""Scores for rows of tables: a function for `datasets.Dataset.map(..., batched=True)`, without that library.

scored = texts.map(row_scorer("quality.btlm"), batched=True)
kept = scored.filter(lambda row: row["percentile"] is not None and row["percentile"] < 95)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bit_transformer.errors import ConfigError, Give
from bit_transformer.quality.model import COLUMNS, EMPTY, QualityModel
from bit_transformer.quality.scoring import score_texts


class RowScorer:
    """Takes columns of rows, and gives columns with their scores. Missing texts have none. Other processes can be given a copy.

    Args:
        model: a quality model, or its file; a copy in another process reads the file.
        field: the column with the text.
        jobs: threads; `map` has processes of its own.

    Raises:
        CheckpointError: no such file, or another one.
    """

    def __init__(self, model: str | Path | QualityModel, field: str = "text", *, jobs: int = 1) -> None:
        self.field, self.jobs = field, jobs
        self._from = model
        self.model = model if isinstance(model, QualityModel) else QualityModel.load(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return _scorer, (self._from, self.field, self.jobs)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns `bpb`, `percentile`, `K`, `C`, `S`, `gate` and `reason` for some rows.

        Raises:
            ConfigError: there is no such column.
            BitStreamError: it holds something else than text.
        """
        if self.field not in rows:
            raise ConfigError(
                f"got rows without {self.field!r}; they have {', '.join(map(str, rows))}",
                field="field",
                tries=(Give("field"),),
            )
        texts = rows[self.field]
        scores = score_texts((text for text in texts if text is not None), self.model, jobs=self.jobs)
        columns = [
            next(scores).columns() if text is not None else {**EMPTY.columns(), "reason": "no text"} for text in texts
        ]
        return {name: [row[name] for row in columns] for name in COLUMNS}


def row_scorer(model: str | Path | QualityModel, field: str = "text", *, jobs: int = 1) -> RowScorer:
    """A function for `map(..., batched=True)`; see `RowScorer`."""
    return RowScorer(model, field, jobs=jobs)


def _scorer(model: str | Path | QualityModel, field: str, jobs: int) -> RowScorer:
    return RowScorer(model, field, jobs=jobs)
