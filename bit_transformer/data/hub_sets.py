"""Data sets of the Hugging Face hub, and local ones of that library, as corpora: `hf:NAME[:CONFIG][:SPLIT][:COLUMN]`.

    hf:Salesforce/wikitext:wikitext-2-raw-v1:test
    hf:my-folder::train:text          # files of text, JSON lines, CSV, parquet; or what `save_to_disk` wrote

The text of one column is written to the user's cache once, as a plain file: each row ends with a newline. Its SHA-256 is recorded beside it and checked
whenever it is used. After that neither the library nor a network is needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit_transformer.data.registry import PartName, check_file, corpus_cache, file_sum, write_pieces
from bit_transformer.errors import BitStreamError, BitTransformerError, ConfigError, HubError
from bit_transformer.extras import require

PREFIXES = ("hf:", "datasets:")
FOLDER = "hub-sets"
ROWS = 1000  # read at a time
ANSWER_SECONDS = 10.0  # for the hub to answer


def is_hub_name(name: str) -> bool:
    """Whether a corpus's name is one of a data set of the hub."""
    return name.startswith(PREFIXES)


@dataclass(frozen=True)
class HubSet:
    """A column of a data set.

    Attributes:
        name: OWNER/NAME on the hub, or a local folder.
        config: of data sets that have several; None: the only one.
        split: None: `train`. The library's slices are allowed, such as `train[:1000]`.
        column: None: `text`, or the only one that holds text.
    """

    name: str
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @classmethod
    def of(cls, name: str) -> HubSet:
        """Read `hf:NAME[:CONFIG][:SPLIT][:COLUMN]`; fields in the middle may be empty.

        Raises:
            BitStreamError: no name, or too many fields.
        """
        _, _, rest = name.partition(":")
        given, *fields = re.split(r":(?![^\[]*\])", rest)
        if not given or len(fields) > 3:
            raise BitStreamError(
                f"got corpus {name!r}; hf:NAME[:CONFIG][:SPLIT][:COLUMN] is needed. Try hf:Salesforce/wikitext:wikitext-2-raw-v1:test"
            )
        config, split, column = (*(one or None for one in fields), None, None, None)[:3]
        return cls(given, config, split, column)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.name).is_dir()

    def file_name(self) -> str:
        """The name of its file in the cache. It changes with the files of a local folder."""
        state: list[Any] = [self.name, self.config, self.split or "train", self.column]
        if self.is_local:
            folder = Path(self.name).resolve()
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
            state += [str(folder), *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)]
        key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
        shown = [Path(self.name).name if self.is_local else self.name, self.config, self.split or "train", self.column]
        return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(part for part in shown if part)).strip("-")[:80] + f"-{key}.txt"


def row_file(name: str) -> Path:
    """The file with the rows of a data set; written if it is not there yet.

    Raises:
        BitStreamError: no such data set, split or column; or a file in the cache that is not what was written.
        HubError: the hub cannot be reached.
        MissingExtra: the library `datasets` is needed and not installed.
    """
    return _file_of(HubSet.of(name), name)


def part_file(name: str, part: PartName) -> Path:
    """The same for one of the splits train, validation and test.

    Raises:
        ConfigError: the name says which split.
        BitStreamError: as `row_file`.
    """
    asked = HubSet.of(name)
    if asked.split is not None:
        raise ConfigError(
            f"got data.split='standard' for {name!r}, which names the split {asked.split!r}; it must be left out. "
            f"Try hf:{asked.name}:{asked.config or ''}{f'::{asked.column}' if asked.column else ''}",
            field="data.split",
        )
    return _file_of(replace(asked, split=part), name)


def _file_of(asked: HubSet, name: str) -> Path:
    path = corpus_cache() / FOLDER / asked.file_name()
    record = path.with_suffix(".json")
    if path.is_file() and record.is_file():
        known = json.loads(record.read_text())["sha256"]
        check_file(
            path, f"sha256:{known}", f"{name!r} as it was written", "removing the file, then it is written again"
        )
        return path
    write_pieces(path, _texts(asked, name))
    about = {"name": name, "split": asked.split or "train", "sha256": file_sum(path), "bytes": path.stat().st_size}
    write_pieces(record, [json.dumps(about, indent=2).encode()])
    return path


def _texts(asked: HubSet, name: str) -> Iterator[bytes]:
    """Rows of text, a thousand at a time, each ending with a newline."""
    library = require("datasets", extra="datasets", purpose=f"corpus {name!r}")
    with quiet(library), _refusals(name):
        rows = _loaded(library, asked, name)
        column = _column(rows, asked, name)
        for batch in rows.iter(batch_size=ROWS):
            encoded = (text if isinstance(text, bytes) else (text or "").encode() for text in batch[column])
            yield b"".join(text if text.endswith(b"\n") else text + b"\n" for text in encoded)


def _loaded(library: Any, asked: HubSet, name: str) -> Any:
    """The rows of a split, as the library has them."""
    split = asked.split or "train"
    folder = Path(asked.name)
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        saved = library.load_from_disk(str(folder))
        if not isinstance(saved, dict):
            saved = {str(saved.split or split): saved}
        if split not in saved:
            raise BitStreamError(f"got corpus {name!r}; its splits are {', '.join(saved)}. Try one of these")
        return saved[split]
    if not asked.is_local:
        _check_reached(asked.name)
    return library.load_dataset(asked.name, asked.config, split=split)


def _check_reached(repo: str) -> None:
    """Ask the hub once. The library itself would try for half a minute."""
    hub = require("huggingface_hub", extra="datasets", purpose="the Hugging Face hub")
    if hub.constants.HF_HUB_OFFLINE:
        return  # the library takes what it has
    try:
        hub.HfApi().dataset_info(repo, timeout=ANSWER_SECONDS)
    except hub.errors.HfHubHTTPError as refused:
        if refused.response.status_code in (401, 404):
            raise BitStreamError(
                f"got corpus 'hf:{repo}'; the hub has no such data set, or only for others. Try another name, a local folder, or `hf auth login`"
            ) from None
        raise
    except (hub.errors.HTTPError, OSError) as lost:
        raise HubError(
            f"hf:{repo}: {hub.constants.ENDPOINT} cannot be reached ({_first_line(lost)})",
            tries=("again with a network", "a local folder", "HF_HUB_OFFLINE=1 where it was loaded before"),
        ) from None


def _column(rows: Any, asked: HubSet, name: str) -> str:
    """The column to take."""
    kinds = {column: getattr(feature, "dtype", "other") for column, feature in rows.features.items()}
    texts = [column for column, kind in kinds.items() if kind in ("string", "large_string", "binary", "large_binary")]
    wanted = asked.column or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if wanted not in texts:
        got = f"column {wanted!r}" if wanted else "no column"
        raise BitStreamError(
            f"got {got} for corpus {name!r}; one of text is needed: {', '.join(texts) or 'it has none'}. "
            f"Try hf:{asked.name}:{asked.config or ''}:{asked.split or 'train'}:{texts[0] if texts else 'COLUMN'}"
        )
    return str(wanted)


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Within: the library `datasets` draws no progress bars."""
    off = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            library.enable_progress_bars()


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Within: what the library raises becomes one line."""
    try:
        yield
    except BitTransformerError:
        raise
    except ConnectionError as lost:
        raise HubError(
            f"{name}: the hub cannot be reached ({_first_line(lost)})", tries=("again with a network", "a local folder")
        ) from None
    except OSError as failed:
        if failed.errno is not None:  # of the disk
            raise
        raise BitStreamError(f"corpus {name!r}: {_first_line(failed)}. Try another name") from None
    except Exception as failed:  # the library raises any: ValueError, its own, those of the formats it reads
        raise BitStreamError(f"corpus {name!r}: {_first_line(failed)}. Try another name, config or split") from None


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200].rstrip(".")
