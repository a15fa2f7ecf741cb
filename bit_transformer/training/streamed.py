"""Training windows whose features are computed as they are drawn: for features too large to store, or a first pass that takes too long."""

# Shapes: B windows, T bits, F features.
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.data.windows import Batch, SamplerState, epoch_key
from bit_transformer.errors import BitStreamError
from bit_transformer.experts.bank import ExpertBank, restore_stream
from bit_transformer.experts.feature_cache import tables
from bit_transformer.experts.passes import begin_with, corpus_units
from bit_transformer.experts.sketch import WINDOW
from bit_transformer.tensor_file import prefixed


class StreamedWindows:
    """Windows whose features are computed as they are drawn, for features that are too large to store.

    The corpus is cut into as many regions as a batch has windows. Every draw takes the next window of each region, so each row of the batches
    is one stream, read in order. All streams train one bank. An epoch starts with the bank from before the corpus, so that no byte is
    predicted by a bank that has learned it.

    Args:
        streams: windows per draw.
        start: the bank from before the corpus. Default: an empty one.
        keep: the bank that the model keeps, if it has learned the corpus before; else it gets this training's.
    """

    def __init__(
        self,
        corpus: Corpus,
        window_bytes: int,
        model: ModelConfig,
        *,
        streams: int,
        seed: int = 0,
        start: ExpertBank | None = None,
        keep: ExpertBank | None = None,
    ) -> None:
        self.corpus, self.window_bytes, self.model = corpus.aligned(model.align_bytes), window_bytes, model
        self.count, self.seed = streams, seed
        self.per_stream = len(self.corpus) // streams // window_bytes
        if not self.per_stream:
            raise BitStreamError(
                f"got {len(self.corpus)} bytes of training data for {streams} streams; at least {streams * window_bytes} are needed. "
                f"Try a smaller train.batch_size, or a larger train.feature_cache"
            )
        self.epoch, self.drawn = 0, 0
        self._finished: ExpertBank | None = None
        self._start, self._keep = start, keep
        self._begin()

    def _begin(self) -> None:
        self._bank = begin_with(self._start, self.model)
        self._streams = [self._bank.stream() for _ in range(self.count)]

    @property
    def bank(self) -> ExpertBank:
        """The bank for the model: `keep` if given, else the one of this and the last epoch that has learned more."""
        if self._keep is not None:
            return self._keep
        if self._finished is not None and self._finished.count > self._bank.count:
            return self._finished
        return self._bank

    def __len__(self) -> int:
        return self.per_stream * self.count

    def draw(self, count: int) -> Batch:
        """The next window of every stream."""
        assert count == self.count
        if self.drawn == self.per_stream:
            self.epoch, self.drawn, self._finished = self.epoch + 1, 0, self._bank
            self._begin()
        room = len(self.corpus) - self.count * self.per_stream * self.window_bytes
        shift = epoch_key(self.seed, self.epoch) % (room // self.model.align_bytes + 1) * self.model.align_bytes
        rows, features = [], []
        for index, stream in enumerate(self._streams):
            offset = shift + (index * self.per_stream + self.drawn) * self.window_bytes
            units = corpus_units(self.corpus, offset, self.window_bytes, self.model)
            made = self._bank.read(units, stream, learn=True)
            before = min(offset, WINDOW - 1)  # so that phrases across two windows are noted too
            data = self.corpus.read(offset - before, before + self.window_bytes)
            self._bank.note(data)
            rows.append(bytes_to_bits(data[before:], parity=self.model.parity))
            features.append(made.reshape(-1, self._bank.features))
        self.drawn += 1
        return Batch(torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(features)))

    def state_dict(self) -> SamplerState:
        """The position, without what `tensors` gives."""
        return {"epoch": self.epoch, "drawn": self.drawn}

    def tensors(self) -> dict[str, Tensor]:
        """The bank, packed, and the state of its streams."""
        kept = prefixed("bank.", self._bank.packed())
        if self._finished is not None:
            kept |= prefixed("finished.", self._finished.packed())
        for index, stream in enumerate(self._streams):
            kept |= prefixed(f"stream.{index}.", stream._asdict())
        return kept

    def load_state_dict(self, state: SamplerState, tensors: Mapping[str, Tensor]) -> None:
        """Restore the position and the tensors."""
        self.epoch, self.drawn = state["epoch"], state["drawn"]
        self._begin()
        self._bank.load_state_dict(tables("bank.", tensors))
        self._finished = None
        if finished := tables("finished.", tensors):
            self._finished = ExpertBank.of(self.model)
            self._finished.load_state_dict(finished)
        for index, stream in enumerate(self._streams):
            restore_stream(stream, tables(f"stream.{index}.", tensors))
