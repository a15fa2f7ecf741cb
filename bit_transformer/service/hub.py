"""Models on the Hugging Face hub: a run's model is pushed there with a card, and a model from there becomes a run folder.

Only files of known names are taken from a repository: safetensors, JSON and text, never pickles or code. The token is that of the environment,
of the hub's library or of the system's keyring (`hub_token.py`); it is in no request and in no record.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_transformer.adapters.folder import CODE_FILE, TOKENIZER_FILE
from bit_transformer.config import ModelConfig
from bit_transformer.errors import BitTransformerError, CheckpointError, ConfigError, Give, HubError
from bit_transformer.extras import require
from bit_transformer.runs.lock import held
from bit_transformer.service.checkpoints import GATE_FILE, MODEL_FILE, header, summarize
from bit_transformer.service.files import check_run_folder
from bit_transformer.service.hub_token import SIGN_IN, known_token
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.model_card import CARD_FILE, CONFIG_FILE, config_text, parcel
from bit_transformer.service.requests import LoginRequest, PullRequest, PushRequest
from bit_transformer.service.workspace import Workspace

PURPOSE = "the Hugging Face hub"
KNOWN = (MODEL_FILE, GATE_FILE, CONFIG_FILE, CARD_FILE)  # what is pulled
SENT = (*KNOWN, CODE_FILE, TOKENIZER_FILE)  # what a push may have put there
SMALL, SMALL_BYTES = (CONFIG_FILE, CARD_FILE), 4 << 20  # most bytes of files that are read whole
ROOM = 64 << 20  # bytes of the disk that stay free
FRESH = (".gitattributes",)  # what the hub puts into a new repository
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """A model on the hub.

    Attributes:
        url: of the repository.
        commit: of this version.
        files: bytes of each.
    """

    run: str
    repo: str
    url: str
    commit: str
    private: bool
    files: dict[str, int]


@dataclass(frozen=True)
class Pulled:
    """A model from the hub.

    Attributes:
        out: the run folder.
        commit: the version that was pulled.
        files: bytes of each.
        left: files of the repository that were not taken.
    """

    repo: str
    out: str
    commit: str
    files: dict[str, int]
    left: list[str]


@dataclass(frozen=True)
class Account:
    """Whose token is used.

    Attributes:
        source: where the token is from.
        role: what it may do, as the hub says: read, write, fineGrained; None if it does not say.
        endpoint: the hub that was asked.
    """

    user: str
    source: str
    role: str | None
    endpoint: str


def login(request: LoginRequest, workspace: Workspace, job: Job) -> Account:
    """Ask the hub whose token this machine has. The token itself is never shown.

    Raises:
        HubError: there is no token, the hub does not know it, or cannot be reached.
        MissingExtra: the hub's library is not installed.
    """
    token = known_token(_library())
    if token is None:
        raise HubError("got no token of the hub; none is needed to pull what is public", tries=(SIGN_IN,))
    return whose(token.text, token.source)


def whose(token: str, source: str) -> Account:
    """Ask the hub whose a token is.

    Raises:
        HubError: the hub does not know it, or cannot be reached.
        MissingExtra: the hub's library is not installed.
    """
    hub = _library()
    api = hub.HfApi(token=token)
    with _refusals(hub, "hub", "say whose it is"):
        try:
            said = api.whoami()
        except hub.errors.HfHubHTTPError as refused:
            if refused.response.status_code not in (401, 403):
                raise
            raise HubError(
                f"got a token from {source}; {api.endpoint} does not know it", tries=("a new one", SIGN_IN)
            ) from None
        try:
            role = said.get("auth", {}).get("accessToken", {}).get("role")
            return Account(str(said["name"]), source, None if role is None else str(role), str(api.endpoint))
        except (AttributeError, KeyError, TypeError):
            raise HubError(f"{api.endpoint}: its answer makes no sense. Try again later") from None


def push(request: PushRequest, workspace: Workspace, job: Job) -> Pushed:
    """Push a run's model to the hub, as one commit: the checkpoint, settings without this machine's paths, the gate, and a card.

    Raises:
        CheckpointError: no such run.
        HubError: the hub refused, or could not be reached.
        ConfigError: a name that no repository can have.
        MissingExtra: the hub's library is not installed.
    """
    _check_repo(request.repo)
    of = parcel(request.run, workspace)
    hub = _library()
    token = known_token(hub)
    if token is None:
        raise HubError("got no token of the hub; a token that may write is needed", tries=(SIGN_IN,))
    api, repo = hub.HfApi(token=token.text), request.repo
    files = of.files(repo)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    with job.cancellable(), _quiet(hub), _refusals(hub, repo, "write to it"):
        there = _begin(hub, api, request)
        adds = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
            for name, file in files.items()
        ]
        done, total = 0, sum(sizes.values())
        for add in sorted(adds, key=lambda one: sizes[one.path_in_repo]):
            job.tell(Reading(done, total, "hub: sent"))
            api.preupload_lfs_files(repo, additions=[add])  # large files; small ones go with the commit
            done += sizes[add.path_in_repo]
        gone = [hub.CommitOperationDelete(path_in_repo=name) for name in SENT if name in there and name not in files]
        step = "" if of.about.step is None else f" at update {of.about.step:,}"
        made = api.create_commit(repo, [*adds, *gone], commit_message=request.message.strip() or f"{of.name}{step}")
        job.tell(Reading(total, total, "hub: sent"))
    return Pushed(of.name, repo, f"{api.endpoint}/{repo}", str(made.oid), request.private, sizes)


def _begin(hub: Any, api: Any, request: PushRequest) -> set[str]:
    """Make the repository, or check that this push may go into the one that is there; what it holds."""
    repo = request.repo
    try:
        api.create_repo(repo, private=request.private)
        return set()
    except hub.errors.HfHubHTTPError as refused:
        if refused.response.status_code != 409:
            raise
    info = api.repo_info(repo)
    there = {file.rfilename for file in info.siblings or ()}
    if there - set(FRESH) and not request.overwrite:
        raise HubError(
            f"got repo {repo!r}; there is a repository of that name, with files in it",
            field="repo",
            tries=("another name", Give("overwrite", True)),
        )
    if request.private and not info.private:
        raise HubError(
            f"got repo {repo!r}, which is public, and private=True; a push does not change who can see it",
            field="private",
            tries=(Give("private", False), "another name"),
        )
    return there


def pull(request: PullRequest, workspace: Workspace, job: Job) -> Pulled:
    """Pull a model from the hub into a new run folder, which appears when all is there and the checkpoint can be read.

    Raises:
        HubError: no such repository, no checkpoint of this package in it, too large, or the hub could not be reached.
        ConfigError: the folder holds something already, or a name that no repository can have.
        MissingExtra: the hub's library is not installed.
    """
    repo, out = request.repo, request.out
    _check_repo(repo)
    check_run_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds files already; a model needs its own folder", field="out", tries=(Give("out"),))
    hub = _library()
    token = known_token(hub)
    api = hub.HfApi(token=token.text if token is not None else None)
    with job.cancellable(), _quiet(hub), _refusals(hub, repo, "read it"):
        info = api.repo_info(repo, revision=request.revision, files_metadata=True)
        sizes: dict[str, int | None] = {file.rfilename: file.size for file in info.siblings or ()}
        wanted = [name for name in KNOWN if name in sizes]
        left = sorted(set(sizes) - set(wanted))
        if MODEL_FILE not in wanted:
            there = ", ".join(left[:5]) or "nothing"
            raise HubError(
                f"{repo}: holds no {MODEL_FILE} ({there}); only checkpoints of this program are read, and no pickles. Try another repository",
                field="repo",
            )
        temporary = out.absolute().with_name(f".{out.absolute().name}.pull")
        with held(temporary):  # one pull a folder
            try:
                new = _download(hub, api, repo, info.sha, {name: sizes[name] for name in wanted}, temporary, job)
                _check(new, repo)
                os.replace(new, out)
            finally:  # all but the lock, which goes last
                for place in ("raw", "run"):
                    shutil.rmtree(temporary / place, ignore_errors=True)
        with suppress(OSError):  # it was there before, and is empty now
            temporary.rmdir()
    taken = {name: (out / name).stat().st_size for name in wanted}
    return Pulled(repo, str(out), str(info.sha), taken, left)


def _download(
    hub: Any, api: Any, repo: str, commit: str, sizes: dict[str, int | None], temporary: Path, job: Job
) -> Path:
    """Download files of one commit; the folder that holds them and nothing else."""
    raw, new = temporary / "raw", temporary / "run"
    for place in (raw, new):  # what a killed process left
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    free = shutil.disk_usage(temporary).free - ROOM
    total, done = sum(size or 0 for size in sizes.values()), 0
    if total > free:
        raise HubError(
            f"{repo}: has {total:,} bytes; {max(0, free):,} are free. Try freeing space, or another disk", field="out"
        )
    for name, size in sizes.items():
        most = min(free - done if size is None else size, SMALL_BYTES if name in SMALL else free - done)
        if size is not None and size > most:
            raise HubError(f"{repo}: {name} has {size:,} bytes, of {most:,} at most. Try another revision")
        before = done

        def tell(here: int, name: str = name, most: int = most, before: int = before) -> None:
            if here > most:
                raise HubError(f"{repo}: {name} is longer than the {most:,} bytes that it may have. Try again later")
            job.tell(Reading(before + here, max(total, before + here), "hub: received"))

        meter: Any = _meter(tell)
        got = Path(api.hf_hub_download(repo, name, revision=commit, local_dir=raw, tqdm_class=meter))
        done += got.stat().st_size
        os.replace(got, new / name)
    return new


def _check(folder: Path, repo: str) -> None:
    """Refuse what is not a checkpoint of this package; leave nothing in the settings that a machine could follow."""
    found = summarize(repo, folder)
    if found is None:
        raise HubError(f"{repo}: its {MODEL_FILE} is not one that btlm wrote. Try another repository", field="repo")
    try:
        ModelConfig.of(found.model)
    except BitTransformerError as other:
        raise CheckpointError(
            f"{repo}: was written by another version ({other}) Try the version that wrote it"
        ) from None
    try:
        if (folder / GATE_FILE).exists():
            header(folder / GATE_FILE)
        if (settings := folder / CONFIG_FILE).exists():
            config = json.loads(settings.read_text(encoding="utf-8"))
            settings.write_bytes(config_text(config if isinstance(config, dict) else {}))
    except (OSError, ValueError, RecursionError):
        raise HubError(
            f"{repo}: its {GATE_FILE} or {CONFIG_FILE} is damaged. Try another revision", field="revision"
        ) from None


def _meter(tell: Callable[[int], None]) -> type:
    """A class that the hub's library takes for a progress bar; told how many bytes have come, before they are written."""

    class Meter:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n = initial

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float = 1) -> None:
            self.n += int(count)
            tell(self.n)

        def __getattr__(self, name: str) -> Any:  # whatever else a bar can do
            if name.startswith("_") or name == "update_transfer":
                raise AttributeError(name)
            return lambda *_, **__: None

    return Meter


def _library() -> Any:
    hub = require("huggingface_hub", extra="hub", purpose=PURPOSE)
    for part in ("constants", "errors", "utils"):  # it loads its parts when they are first asked for, and not all
        require(f"huggingface_hub.{part}", extra="hub", purpose=PURPOSE)
    return hub


def _check_repo(repo: str) -> None:
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 96:
        raise ConfigError(
            f"got repo {repo[:100]!r}; OWNER/NAME is needed, with letters, digits, dots, dashes or underscores. Try me/my-model",
            field="repo",
        )


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Within: the library draws no progress bars; jobs say how far they are."""
    off = hub.utils.are_progress_bars_disabled()
    if not off:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            hub.utils.enable_progress_bars()


@contextmanager
def _refusals(hub: Any, repo: str, act: str) -> Iterator[None]:
    """Within: what the library raises becomes one line."""
    try:
        yield
    except BitTransformerError:
        raise
    except Exception as error:
        told = _told(hub, repo, act, error)
        if told is None:  # not of the hub: a disk that is full, a fault of this program
            raise
        raise told from None


def _told(hub: Any, repo: str, act: str, error: BaseException) -> HubError | None:
    """What went wrong, in the words of this package."""
    errors = hub.errors
    if type(error) is RuntimeError and error.__cause__ is not None:  # around what failed in an upload
        known = _told(hub, repo, act, error.__cause__)
        return known or HubError(f"{repo}: {_first_line(error)} ({_first_line(error.__cause__)}). Try again later")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo}: has no such revision. Try main, or no revision", field="revision")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _unreachable(hub, repo, error)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
            return _no_repository(hub, repo, act, status)
        if status == 403:
            tries = ("a repository of your own", "a token that may write")
            return HubError(f"{repo}: the hub's token may not {act}", field="repo", tries=tries)
        return HubError(f"{repo}: the hub refused ({status}: {_first_line(error)}). Try again later")
    if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
        return _unreachable(hub, repo, error)
    if isinstance(error, ValueError):  # of the library's checks, or an answer that is not the hub's
        return HubError(f"{repo}: the hub's answer makes no sense ({_first_line(error)}). Try again later")
    return None


def _no_repository(hub: Any, repo: str, act: str, status: int) -> HubError:
    if status == 401:
        why = "the hub does not know the token" if known_token(hub) else "no token was given"
        what = f"{repo}: there is no such repository, or {why} that it takes to {act}"
    else:
        what = f"{repo}: there is no such repository, or the token may not {act}"
    return HubError(what, field="repo", tries=("another name", SIGN_IN))


def _unreachable(hub: Any, repo: str, lost: BaseException) -> HubError:
    where = hub.constants.ENDPOINT
    return HubError(
        f"{repo}: {where} cannot be reached ({_first_line(lost)})",
        tries=("again with a network", "HF_HUB_OFFLINE unset"),
    )


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200].rstrip(".")
