"""The folder of a server's state, and names for what is in it: requests from outside name runs and data by ids, never by paths.

BTLM_HOME/
  runs.sqlite      run records, jobs, events, the audit log
  runs/NAME/       run folders
  uploads/ID/      `data`, and `about.json` with the name that it had
  jobs/NUMBER/     the log of a job, and the lock that its process holds
  data.json        folders and files that were declared as data: name -> path
  token            the bearer token, readable by its owner only; token.read: one that reads everything and writes nothing
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from bit_transformer.data.hub_sets import is_hub_name
from bit_transformer.data.sources import REGISTRY, is_corpus
from bit_transformer.errors import Ask, BitStreamError, CheckpointError, ConfigError, RunNotFound, UploadNotFound
from bit_transformer.extras import require
from bit_transformer.runs.database import Database
from bit_transformer.runs.jobs import JobStore
from bit_transformer.runs.lock import held
from bit_transformer.runs.store import RunStore
from bit_transformer.service.checkpoints import KEPT, MODEL_FILE
from bit_transformer.service.files import write_file
from bit_transformer.service.operations import OPERATIONS, Operation
from bit_transformer.service.requests import Place, Request
from bit_transformer.service.workspace import Workspace

HOME_VARIABLE = "BTLM_HOME"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UPLOAD, DATA = "upload:", "data:"
_ENDINGS = {
    "map": ".map.html",
    "repair_proved": ".repaired",
    "filter": ".filtered.jsonl",
}  # of the files that operations write
TOKEN, READ_TOKEN = "token", "token.read"


def home_folder() -> Path:
    """The folder that `BTLM_HOME` names; else one among the user's data."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named)
    dirs = require("platformdirs", extra="server", purpose="the management server")
    return Path(dirs.user_data_dir("btlm", appauthor=False))


@dataclass(frozen=True)
class DataSource:
    """Data that requests can name.

    Attributes:
        id: its name in requests.
        kind: corpus, upload or data (declared).
        name: for display.
        bytes: None if it is not here yet, or a folder.
    """

    id: str
    kind: str
    name: str
    bytes: int | None


class Home:
    """A server's folder.

    Args:
        folder: made with its parts if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.runs, self.uploads, self.jobs_folder = (self.folder / name for name in ("runs", "uploads", "jobs"))
        self.store_path = self.folder / "runs.sqlite"
        for part in (self.folder, self.runs, self.uploads, self.jobs_folder):
            part.mkdir(parents=True, exist_ok=True)

    @property
    def store(self) -> RunStore:
        """Run records."""
        return RunStore(self.store_path)

    @property
    def jobs(self) -> JobStore:
        """The queue."""
        return JobStore(self.store_path)

    def workspace(self, device: str = "auto") -> Workspace:
        """What operations need."""
        return Workspace(self.store_path, device)

    def open_store(self) -> list[str]:
        """Make the store, or bring it up to date. A damaged one is moved aside, and run folders are entered into the new one.

        Returns:
            what the owner should know.
        """
        moved = Database(self.store_path).move_damaged_aside()
        with Database(self.store_path).open(write=True):
            pass
        if moved is None:
            return []
        numbers = [int(place.name) for place in self.jobs_folder.iterdir() if place.name.isdigit()]
        self.jobs.begin_after(max(numbers, default=0))
        found = self._enter_runs()
        return [
            f"the database was damaged; it is kept as {moved.name}, and a new one was begun with {found} runs found in their folders"
        ]

    def _enter_runs(self) -> int:
        """Record the runs of the folders, without their curves; how many there are."""
        count = 0
        for settings in sorted(self.runs.glob("*/config.json")):
            with suppress(OSError, ValueError):
                folder, config = settings.parent, json.loads(settings.read_text())
                self.store.begin(folder.name, folder, config)
                self.store.end(
                    folder.name, "stopped", "its records were lost with a damaged database; it can be resumed"
                )
                count += 1
        return count

    # ---- the token ----

    def token(self, name: str = TOKEN) -> tuple[str, bool]:
        """The bearer token, and whether it was just made.

        Args:
            name: of its file: `token`, or `token.read` for the one that only reads.

        Raises:
            ConfigError: its file is empty or cannot be read.
        """
        path = self.folder / name
        with suppress(FileExistsError):
            made = secrets.token_urlsafe(32)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made + "\n")
            return made, True
        kept = read_token(self.folder, name)
        if kept is None:
            raise ConfigError(
                f"{path}: holds no token that can be read. Try removing it; the next start makes a new one"
            )
        return kept, False

    # ---- runs ----

    def run_folder(self, name: str, field: str = "run") -> Path:
        """The folder of a run, of the store or of the home.

        Raises:
            RunNotFound: there is none of that name.
        """
        check_name(name, field)
        if (self.runs / name).is_dir():
            return self.runs / name
        return Path(self.store.get(name).folder)

    def remove_folder(self, name: str) -> None:
        """Remove a folder of the home that no record is of, such as a quantized or pulled copy.

        Raises:
            RunNotFound: there is none.
            RunBusy: it is in training.
        """
        folder = self.run_folder(name)
        if folder.parent != self.runs:
            raise RunNotFound(f"got run {name!r}; its folder is elsewhere. Try removing it there", field="run")
        with held(folder):
            shutil.rmtree(folder)

    def checkpoint_folder(self, name: str, field: str = "run") -> Path:
        """The folder that holds a run's model, or a kept one: `RUN@STEP`.

        Raises:
            RunNotFound: no such run.
            CheckpointError: that checkpoint was not kept.
        """
        run, _, step = name.partition("@")
        folder = self.run_folder(run, field)
        if not step:
            return folder
        kept = folder / KEPT / step
        if not step.isdigit() or not kept.is_dir():
            there = ", ".join(f"{run}@{place.name}" for place in sorted((folder / KEPT).glob("*"))[:5]) or "none"
            raise CheckpointError(
                f"got {name!r}; kept checkpoints of {run!r} are: {there}",
                field=field,
                tries=(Ask("runs.checkpoint", run),),
            )
        return kept

    def named(self, value: Any) -> Any:
        """A result or an error with ids in place of the paths that they stand for, as requests have them."""
        if isinstance(value, str):
            for name, path in self.declared().items():
                value = value.replace(str(path), DATA + name)
            value = re.sub(rf"{re.escape(str(self.runs))}/({NAME.pattern})/{KEPT}/(\d+)", r"\1@\2", value)
            value = value.replace(f"{self.runs}/", "").replace(str(self.store_path), "this server's store")
            value = re.sub(rf"{re.escape(str(self.uploads))}/([0-9a-f]{{12}})/data", rf"{UPLOAD}\1", value)
            return value.replace(f"{self.folder}/", "")
        if isinstance(value, dict):
            return {key: self.named(part) for key, part in value.items()}
        return [self.named(part) for part in value] if isinstance(value, list) else value

    # ---- data ----

    def declared(self) -> dict[str, Path]:
        """Folders and files that were declared as data."""
        with suppress(FileNotFoundError, ValueError):
            found = json.loads((self.folder / "data.json").read_text())
            return {name: Path(path) for name, path in found.items() if NAME.fullmatch(name)}
        return {}

    def declare(self, path: Path) -> str:
        """Declare a file or folder as data; returns its id.

        Raises:
            BitStreamError: it does not exist.
            ConfigError: its name cannot be one.
        """
        if not path.exists():
            raise BitStreamError(f"{path}: does not exist; a file or folder is needed. Try another path")
        name = re.sub(r"[^A-Za-z0-9._-]", "-", path.absolute().name).lstrip(".-_")[:64]
        check_name(name, "data")
        known = {key: str(place) for key, place in self.declared().items()} | {name: str(path.absolute())}
        write_file(self.folder / "data.json", json.dumps(known, indent=2).encode())
        return DATA + name

    def sources(self) -> list[DataSource]:
        """All data that requests can name."""
        found = [
            DataSource(DATA + name, "data", str(path), path.stat().st_size if path.is_file() else None)
            for name, path in self.declared().items()
        ]
        found += list(self.list_uploads())
        return found + [DataSource(name, "corpus", name, None) for name in ("stdlib", *REGISTRY)]

    def list_uploads(self) -> Iterator[DataSource]:
        """Uploads, and files that jobs have written."""
        for about in sorted(self.uploads.glob("*/about.json")):
            data = about.with_name("data")
            if data.is_file():
                with suppress(OSError, ValueError, KeyError):
                    yield DataSource(
                        UPLOAD + about.parent.name, "upload", json.loads(about.read_text())["name"], data.stat().st_size
                    )

    def new_upload(self, name: str) -> tuple[str, Path]:
        """A place for a new file: its id, and the path to write to. The name is only kept for display."""
        number = secrets.token_hex(6)
        folder = self.uploads / number
        folder.mkdir()
        shown = "".join(char for char in Path(name).name if char.isprintable())[:100] or "data"
        try:
            write_file(folder / "about.json", json.dumps({"name": shown}).encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return UPLOAD + number, folder / "data"

    def upload_path(self, source: str, field: str = "name") -> Path:
        """Where an upload is.

        Raises:
            UploadNotFound: no such upload.
        """
        number = source.removeprefix(UPLOAD)
        folder = self.uploads / number
        if not re.fullmatch(r"[0-9a-f]{12}", number) or not (folder / "about.json").is_file():
            raise UploadNotFound(f"got {source!r}; there is no such upload. Try uploading the file", field=field)
        return folder / "data"

    def remove_upload(self, source: str) -> None:
        """Remove an upload.

        Raises:
            UploadNotFound: no such upload.
        """
        shutil.rmtree(self.upload_path(source).parent)

    def source(self, name: str, field: str) -> str:
        """The corpus or path that an id of data stands for.

        Raises:
            BitStreamError: there is none.
        """
        if is_corpus(name) and not is_hub_name(name):  # a name of the hub's library may be a path of this machine
            return name
        if name.startswith(UPLOAD):
            path = self.upload_path(name, field)
        else:
            declared = self.declared()
            if not name.startswith(DATA) or name.removeprefix(DATA) not in declared:
                there = ", ".join(["stdlib", "tinyshakespeare", *(DATA + key for key in declared)])
                ids = {source.name: source.id for source in self.sources()}
                near = difflib.get_close_matches(name, [*ids, *ids.values()], n=1)
                tries = ids.get(near[0], near[0]) if near else "stdlib"
                raise BitStreamError(
                    f"got data {name[:80]!r}; it must be a corpus such as {there}, or an upload. Try {tries}",
                    field=field,
                )
            path = declared[name.removeprefix(DATA)]
        if not path.exists():
            raise BitStreamError(f"got data {name!r}; its file is not there (yet). Try another", field=field)
        return str(path)

    # ---- requests ----

    def prepare(self, operation: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Check a request from outside, before it is queued; make places for the files it writes.

        Returns:
            its fields, in which new files have ids; and the run that it works on.

        Raises:
            BitTransformerError: as raised for invalid requests.
        """
        kind = _operation(operation).request
        prepared, run = dict(fields), None
        new_files: list[str] = []
        for name, place in _places(kind):
            given = prepared.get(name)
            if place is Place.NEW_FILE and (
                given is not None or name == "out"
            ):  # other files are written only if they are asked for
                made, _ = self.new_upload(str(given or _file_name(operation, prepared, self)))
                prepared[name] = made
                new_files.append(made)
            elif place is Place.NEW_RUN and given is not None:
                run = str(given)
                check_name(run, name)
                taken = (self.runs / run).exists() or any(r.id == run for r in self.store.list_runs())
                if taken and not prepared.get("overwrite"):
                    raise ConfigError(f"got {name}={run!r}; there is a run of that name. Try another name", field=name)
            elif place in (Place.OWN_RUN, Place.CHECKPOINT) and isinstance(given, str) and run is None:
                run = given.partition("@")[0]
        try:
            self.request(operation, prepared)
        except BaseException:
            for made in new_files:
                self.remove_upload(made)
            raise
        return prepared, run

    def request(self, operation: str, fields: Mapping[str, Any]) -> Request:
        """The request in which ids are replaced by what they stand for.

        Raises:
            BitTransformerError: an unknown operation, invalid fields, or an id of something that is not there.
        """
        kind = _operation(operation).request
        translated: dict[str, Any] = dict(fields)
        for name, place in _places(kind):
            given = translated.get(name)
            if given is None or given == [] or given == ():
                continue
            if isinstance(given, list | tuple):
                translated[name] = [self._stands_for(place, item, f"{name}", kind) for item in given]
            else:
                translated[name] = self._stands_for(place, given, name, kind)
        data = translated.get("data")
        if "data" in kind.model_fields and isinstance(data, Mapping) and "corpora" in data:
            names = data["corpora"]
            if not isinstance(names, list | tuple):
                raise ConfigError(
                    "got data.corpora that is not a list; names are needed. Try ['stdlib']", field="data.corpora"
                )
            translated["data"] = {
                **data,
                "corpora": [self.source(_text(n, "data.corpora"), "data.corpora") for n in names],
            }
        return kind.of(translated)

    def _stands_for(self, place: Place, given: Any, field: str, kind: type[Request]) -> str:
        text = _text(given, field)
        if place is Place.NEW_RUN:
            check_name(text, field)
            return str(self.runs / text)
        if place is Place.CHECKPOINT:
            folder = self.checkpoint_folder(text, field)
            return str(folder / MODEL_FILE) if _is_path(kind, field) else str(folder)
        if place is Place.OWN_RUN:
            return str(self.run_folder(text, field)) if _is_path(kind, field) else self._known_run(text, field)
        if place is Place.SOURCE:
            return self.source(text, field)
        if place is Place.NEW_FILE:
            return str(self.upload_path(text, field))
        raise ConfigError(f"got {field}; over a network no paths are taken. Try without {field}", field=field)

    def _known_run(self, name: str, field: str) -> str:
        check_name(name, field)
        return self.store.get(name).id


def read_token(folder: Path, name: str = TOKEN) -> str | None:
    """The token of a home, if it can be read."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / name).read_text().strip() or None
    return None


def check_name(name: str, field: str) -> None:
    """Refuse what cannot be the name of a run or of declared data.

    Raises:
        ConfigError: it is empty, too long, or has characters of paths.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"got {field}={name[:80]!r}; a name has 1 to 64 letters, digits, dots, dashes or underscores and begins with a letter or digit",
            field=field,
            tries=("my-run-1",),
        )


def _operation(name: str) -> Operation:
    if name not in OPERATIONS:
        raise ConfigError(
            f"got operation {name[:80]!r}; it must be one of {', '.join(OPERATIONS)}. Try train", field="operation"
        )
    return OPERATIONS[name]


def _places(kind: type[BaseModel]) -> Iterator[tuple[str, Place]]:
    """Fields of a request that name something, and what."""
    for name, info in kind.model_fields.items():
        place = next((item for item in info.metadata if isinstance(item, Place)), None) or _place_in(info.annotation)
        if place is not None:
            yield name, place


def _place_in(annotation: Any) -> Place | None:
    for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        found = part if isinstance(part, Place) else _place_in(part)
        if found is not None:
            return found
    return None


def _is_path(kind: type[BaseModel], field: str) -> bool:
    return "Path" in str(kind.model_fields[field].annotation)


def _file_name(operation: str, fields: Mapping[str, Any], home: Home) -> str:
    """What a file that an operation writes is called, if the request does not say."""
    if operation == "export":
        return f"{fields.get('run', 'model')}.zip"
    source = str(fields.get("path", "data"))
    name = next((item.name for item in home.list_uploads() if item.id == source), source.rpartition(":")[2])
    if operation == "decompress":
        return name.removesuffix(".btlm")
    return name + _ENDINGS.get(operation, ".btlm")


def _text(given: Any, field: str) -> str:
    if not isinstance(given, str):
        raise ConfigError(f"got {field} of another type; a name is needed. Try a string", field=field)
    return given
