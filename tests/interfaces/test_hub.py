"""Models that leave: packed into a file, pushed to a hub and pulled from it. The hub is a small one in this process, asked over real HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import Cancelled, CheckpointError, ConfigError, HubError
from bit_transformer.service.home import Home
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import TEXT, prose

constants = pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
from fastapi import FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402

TOKEN = "hf_right"
# Of huggingface_hub 2.4, which uploads with what httpx2 no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub:
    """What the library asks a hub for. Files of more than 4 kB are uploaded apart, as large files are (Git LFS)."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.full = False
        self.longer = 0  # bytes that downloads have too many
        self.asked: list[str] = []

    def add(self, repo: str, files: dict[str, bytes], private: bool = False) -> None:
        self.repos[repo] = {"private": private, "files": files}

    def commit(self, repo: str) -> str:
        names = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.repos[repo]["files"].items())
        return hashlib.sha1(json.dumps(names).encode()).hexdigest()

    def app(self) -> Any:
        app = FastAPI()

        def refused(status: int, code: str = "", text: str = "no") -> Response:
            return JSONResponse({"error": text}, status, {"X-Error-Code": code, "X-Error-Message": text})

        @app.middleware("http")
        async def who(request: Request, go_on: Any) -> Response:
            self.asked.append(f"{request.method} {request.url.path}")
            given = request.headers.get("authorization")
            if given not in (None, f"Bearer {TOKEN}"):
                return refused(401, text="Invalid credentials in Authorization header")
            request.state.known = given is not None
            return await go_on(request)

        @app.get("/api/whoami-v2")
        async def whoami(request: Request) -> Any:
            if not request.state.known:
                return refused(401, text="Invalid credentials in Authorization header")
            return {"type": "user", "name": "me", "auth": {"accessToken": {"displayName": "laptop", "role": "write"}}}

        @app.post("/api/repos/create")
        async def create(request: Request) -> Any:
            asked = await request.json()
            repo = f"{asked.get('organization', 'me')}/{asked['name']}"
            if not repo.startswith("me/"):
                return refused(403, text="You don't have the rights to create a model under this namespace")
            if repo in self.repos:
                return refused(409, text="You already created this model repo")
            private = asked.get("private", asked.get("visibility") == "private")
            self.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
            return {"url": f"{request.base_url}{repo}"}

        @app.post("/api/validate-yaml")
        async def validate() -> Any:
            return {"errors": [], "warnings": []}

        @app.get("/api/models/{owner}/{name}")
        @app.get("/api/models/{owner}/{name}/revision/{revision}")
        async def info(request: Request, owner: str, name: str, revision: str = "main") -> Any:
            repo = f"{owner}/{name}"
            if repo not in self.repos or (self.repos[repo]["private"] and not request.state.known):
                return refused(404 if request.state.known else 401, "RepoNotFound")
            if revision not in ("main", self.commit(repo)):
                return refused(404, "RevisionNotFound")
            files = [{"rfilename": n, "size": len(d)} for n, d in self.repos[repo]["files"].items()]
            return {"id": repo, "sha": self.commit(repo), "private": self.repos[repo]["private"], "siblings": files}

        @app.post("/api/models/{owner}/{name}/preupload/{revision}")
        async def preupload(request: Request, owner: str, name: str, revision: str) -> Any:
            asked = (await request.json())["files"]
            mode = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": f["path"], "uploadMode": mode[f["size"] > 4000], "shouldIgnore": False} for f in asked
                ]
            }

        @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(request: Request, owner: str, name: str) -> Any:
            objects = (await request.json())["objects"]
            to = lambda oid: {"upload": {"href": f"{request.base_url}large/{oid}"}}  # noqa: E731
            return {"transfer": "basic", "objects": [{**one, "actions": to(one["oid"])} for one in objects]}

        @app.put("/large/{oid}")
        async def large(request: Request, oid: str) -> Any:
            if self.full:
                return refused(507, text="no room")
            self.large[oid] = await request.body()
            return {}

        @app.post("/api/models/{owner}/{name}/commit/{revision}")
        async def commit(request: Request, owner: str, name: str, revision: str) -> Any:
            repo = f"{owner}/{name}"
            for line in (await request.body()).splitlines():
                said = json.loads(line)
                files, value = self.repos[repo]["files"], said["value"]
                if said["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif said["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                elif said["key"] == "deletedFile":
                    del files[value["path"]]
                else:
                    self.repos[repo]["message"] = value["summary"]
            where = f"{request.base_url}{repo}/commit/{self.commit(repo)}"
            return {"success": True, "commitOid": self.commit(repo), "commitUrl": where, "hookOutput": ""}

        @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Any:
            repo = f"{owner}/{name}"
            if path not in self.repos[repo]["files"]:
                return refused(404, "EntryNotFound")
            data = self.repos[repo]["files"][path]
            headers = {"X-Repo-Commit": self.commit(repo), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            return Response(data + bytes(self.longer), headers=headers)

        return app


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Within: an app at an address."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    made = Hub()
    with served(made.app()) as address:
        point_to(address, monkeypatch, tmp_path)
        yield made


def point_to(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the library ask another hub, as HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")  # not that of the person who tests


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """A folder with a run and its store."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "text.txt").write_bytes(TEXT)
    experts = {"buckets": 1024, "history": 4096}
    model = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "experts": experts}
    train = {"steps": 20, "batch_size": 4, "amp": False}
    data = {"corpora": (str(folder / "text.txt"),)}
    asked = {"out": folder / "runs/one", "model": model, "train": train, "data": data}
    call("train", asked, Workspace(folder / "runs/runs.sqlite", "cpu"))
    return folder


@pytest.fixture
def trained(once, tmp_path) -> Path:
    """A copy of it, as if it had been trained here."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "runs/runs.sqlite")) as db:
        db.execute("UPDATE runs SET folder = ?", (str(tmp_path / "runs/one"),))
        db.commit()
    return tmp_path / "runs" / "one"


def calibrated(btlm: Any, run: Path) -> None:
    Path("prose.txt").write_bytes(prose(1, 9000))
    done = btlm("calibrate", run, "prose.txt", "--alpha", 0.2)
    assert done.returncode == 0, done.stderr


def test_a_run_goes_to_the_hub_and_comes_back(btlm, trained, hub, tmp_path):
    calibrated(btlm, trained)
    done = btlm("hub", "push", "one", "me/model")
    assert done.returncode == 0 and "/me/model (private)" in done.stdout, done.stderr
    there = hub.repos["me/model"]
    assert there["private"] and there["message"].startswith("one at update ")
    assert set(there["files"]) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "gate.safetensors",
        "model.safetensors",
        "modeling_bit_transformer.py",
        "tokenizer_config.json",
    }
    assert hub.large and there["files"]["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    everything = b"".join(there["files"].values()).decode("latin-1")
    assert (
        str(trained) not in everything and "/once" not in everything and "runs.sqlite" not in everything
    )  # nothing of this machine's paths

    there["files"]["pytorch_model.bin"] = pickle.dumps(os.getcwd)
    asked = len(hub.asked)
    pulled = json.loads(btlm("hub", "pull", "me/model", "--out", "runs/back", "--json").stdout)
    code = ["modeling_bit_transformer.py", "pytorch_model.bin"]  # neither is even asked for
    assert pulled["commit"] == hub.commit("me/model")
    assert pulled["left"] == [".gitattributes", *code, "tokenizer_config.json"]
    assert not any(name in path for path in hub.asked[asked:] for name in code)
    assert (
        "auto_map" in there["files"]["config.json"].decode()
        and "auto_map" not in Path("runs/back/config.json").read_text()
    )
    back = tmp_path / "runs/back"
    assert {path.name for path in back.iterdir()} == set(there["files"]) - set(pulled["left"])
    assert (back / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert [path.name for path in back.parent.iterdir() if path.name.startswith(".")] == []
    assert load_checkpoint(back).config == load_checkpoint(trained).config
    more = btlm("train", "--init", back, "--steps", 2, "--out", "runs/more")
    assert more.returncode == 2 and "Try naming corpora" in more.stderr
    more = btlm("train", "text.txt", "--init", back, "--steps", 2, "--out", "runs/more")
    assert more.returncode == 0, more.stderr
    assert btlm("generate", back, "--bytes", 64, "--gate", "--seed", 1).returncode in (0, 4)


def test_the_card_says_what_is_recorded_and_no_more(btlm, trained, hub, tmp_path):
    workspace = Workspace(tmp_path / "runs/runs.sqlite", "cpu")
    (run,) = workspace.store.list_runs()
    call("hub.push", {"run": str(trained), "repo": "me/model"}, workspace)
    card = hub.repos["me/model"]["files"]["README.md"].decode()
    about = load_checkpoint(trained)
    assert f"| parameters | {about.num_parameters().total:,}, of which" in card
    assert "1 layer of width 16, 2 heads" in card and "| trained on | text.txt, " in card
    assert run.result["protocol"][:40] in card and f"| this model | {run.result['bpb']:.4f} |" in card
    assert all(f"| {name} | {bpb:.4f} |" in card for name, bpb in run.result["compressors"].items())
    assert "btlm hub pull me/model --out runs/model" in card and "not calibrated" in card
    workspace.store.remove("one")  # now nothing is known of an evaluation
    call("hub.push", {"run": str(trained), "repo": "me/model", "overwrite": True}, workspace)
    card = hub.repos["me/model"]["files"]["README.md"].decode()
    assert "Not evaluated." in card and "| this model |" not in card


def test_a_second_push_needs_a_word_and_takes_away_what_no_longer_belongs(trained, hub, tmp_path):
    workspace, asked = Workspace(tmp_path / "runs/runs.sqlite", "cpu"), {"run": str(trained), "repo": "me/model"}
    hub.add("me/model", {".gitattributes": b""}, private=True)  # left by a push that was cut off
    call("hub.push", asked, workspace)
    hub.repos["me/model"]["files"]["gate.safetensors"] = b"of an older model"
    with pytest.raises(HubError, match=r"with files in it. Try another name, or overwrite=True"):
        call("hub.push", asked, workspace)
    call("hub.push", {**asked, "overwrite": True, "message": "again"}, workspace)
    assert "gate.safetensors" not in hub.repos["me/model"]["files"] and hub.repos["me/model"]["message"] == "again"
    hub.repos["me/model"]["private"] = False
    with pytest.raises(HubError, match=r"which is public, .*Try private=False, or another name"):
        call("hub.push", {**asked, "overwrite": True}, workspace)


def test_refusals_of_the_hub_are_one_line(btlm, trained, hub, monkeypatch, tmp_path):
    def line(*args: object) -> str:
        done = btlm("hub", *args)
        (text,) = [one for one in done.stderr.splitlines() if not one.startswith("hub: ")]
        assert done.returncode == 2 and "Traceback" not in text, done.stderr
        return text

    assert "there is no such repository, or the token may not read it" in line("pull", "me/ghost", "--out", "x")
    assert "the hub's token may not write to it" in line("push", trained, "you/model")
    hub.add("me/model", {"model.safetensors": b"x"})
    assert "`" not in line("push", trained, "me/model") and not (tmp_path / "x").exists()
    assert "overwrite" in line("push", trained, "me/model")
    assert "has no such revision" in line("pull", "me/model", "--out", "x", "--revision", "v9")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not know the token" in line("push", trained, "me/other")
    assert "the hub does not know the token" in line("pull", "me/model", "--out", "x")
    monkeypatch.delenv("HF_TOKEN")
    assert "got no token of the hub" in line("push", trained, "me/other") and "HF_TOKEN" in line(
        "push", trained, "me/o"
    )
    hub.add("me/secret", {"model.safetensors": b"x"}, private=True)
    assert "no such repository, or no token was given" in line("pull", "me/secret", "--out", "x")
    for name in ("model", "a/b/c", "../b", "me/..", "me/a--b", "me/" + "a" * 99):
        assert "OWNER/NAME is needed" in line("pull", name, "--out", "x")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        free = bound.getsockname()[1]
    point_to(f"http://127.0.0.1:{free}", monkeypatch, tmp_path)
    for args in (("pull", "me/model", "--out", "x"), ("push", trained, "me/other")):
        assert f"http://127.0.0.1:{free} cannot be reached" in line(*args)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": pickle.dumps(os.getcwd)}, r"holds no model.safetensors \(pytorch_model.bin\)"),
        ({}, r"holds no model.safetensors \(nothing\)"),
        ({"model.safetensors": pickle.dumps(os.getcwd)}, "is not one that btlm wrote"),
        ({"model.safetensors": (1 << 60).to_bytes(8, "little") + b"{}"}, "is not one that btlm wrote"),
        ({"model.safetensors": (2).to_bytes(8, "little") + b"[]"}, "is not one that btlm wrote"),
        ({"config.json": b"{"}, "gate.safetensors or config.json is damaged"),
        ({"gate.safetensors": b"{"}, "gate.safetensors or config.json is damaged"),
        ({"README.md": bytes(5 << 20)}, r"README.md has 5,242,880 bytes, of 4,194,304 at most"),
    ],
)
def test_what_is_no_model_leaves_nothing_behind(trained, hub, tmp_path, files, says):
    good = {} if files.keys() & {"model.safetensors", "pytorch_model.bin"} or not files else {
        "model.safetensors": (trained / "model.safetensors").read_bytes()
    }  # fmt: skip
    hub.add("me/model", {**good, **files})
    with pytest.raises(HubError, match=says) as refused:
        call("hub.pull", {"repo": "me/model", "out": tmp_path / "new"}, Workspace(tmp_path / "s.sqlite"))
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


def test_a_model_of_another_version_is_refused(trained, hub, tmp_path):
    data = (trained / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].replace(b'\\"nhead\\": 2', b'\\"knead\\": 2')
    hub.add("me/model", {"model.safetensors": size.to_bytes(8, "little") + text + data[8 + size :]})
    with pytest.raises(CheckpointError, match="was written by another version"):
        call("hub.pull", {"repo": "me/model", "out": tmp_path / "new"}, Workspace(tmp_path / "s.sqlite"))


def test_a_pull_is_bounded_by_the_disk_and_by_what_the_hub_said(trained, hub, tmp_path, monkeypatch):
    workspace, asked = Workspace(tmp_path / "s.sqlite"), {"repo": "me/model", "out": tmp_path / "new"}
    hub.add("me/model", {"model.safetensors": (trained / "model.safetensors").read_bytes()})
    hub.longer = 1 << 20
    with pytest.raises(HubError, match="is longer than the"):
        call("hub.pull", asked, workspace)
    hub.longer = 0
    full = type("Usage", (), {"free": 65 << 20})()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: full)
        hub.repos["me/model"]["files"]["model.safetensors"] += bytes(2 << 20)
        with pytest.raises(HubError, match=r"1,048,576 are free. Try freeing space"):
            call("hub.pull", asked, workspace)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


def test_a_folder_in_use_is_not_touched_and_a_pull_can_be_stopped(trained, hub, tmp_path):
    workspace = Workspace(tmp_path / "s.sqlite")
    hub.add("me/model", {"model.safetensors": (trained / "model.safetensors").read_bytes()})
    with pytest.raises(ConfigError, match="holds files already"):
        call("hub.pull", {"repo": "me/model", "out": trained}, workspace)
    said: list[object] = []
    job = Job(lambda message: (said.append(message), job.cancel()))  # type: ignore[func-returns-value]
    with pytest.raises(Cancelled):
        call("hub.pull", {"repo": "me/model", "out": tmp_path / "new"}, workspace, job)
    assert isinstance(said[0], Reading) and said[0].done and not (tmp_path / "new").exists()
    call("hub.pull", {"repo": "me/model", "out": tmp_path / "new"}, workspace)
    assert (tmp_path / "new/model.safetensors").exists() and not (tmp_path / "new/config.json").exists()


def test_an_upload_that_is_cut_off_is_one_line_and_can_be_tried_again(trained, hub, tmp_path):
    workspace, asked = Workspace(tmp_path / "runs/runs.sqlite", "cpu"), {"run": str(trained), "repo": "me/model"}
    hub.full = True
    with pytest.raises(HubError, match=r"me/model: the hub refused \(507.*Try again later") as refused:
        call("hub.push", asked, workspace)
    assert len(str(refused.value).splitlines()) == 1
    hub.full = False
    call("hub.push", asked, workspace)
    assert "model.safetensors" in hub.repos["me/model"]["files"]


def test_settings_that_are_pulled_name_nothing_on_this_machine(trained, hub, tmp_path):
    config = json.loads((trained / "config.json").read_text()) | {"store": "/etc/passwd", "teacher": "/home/me/t"}
    config["data"]["corpora"] = ["/etc/shadow", "C:\\Users\\me\\x.txt", "stdlib", "-"]
    model = (trained / "model.safetensors").read_bytes()
    hub.add("me/model", {"model.safetensors": model, "config.json": json.dumps(config).encode()})
    call("hub.pull", {"repo": "me/model", "out": tmp_path / "new"}, Workspace(tmp_path / "s.sqlite"))
    found = json.loads((tmp_path / "new/config.json").read_text())
    assert found["data"]["corpora"] == ["shadow", "x.txt", "stdlib", "standard input"]
    assert found["teacher"] == "t" and "store" not in found and "command" not in found


def test_the_command_asks_the_hub_that_the_environment_names(trained, tmp_path):
    made = Hub()
    with served(made.app()) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
                       "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
        command = [sys.executable, "-m", "bit_transformer.cli", "hub"]
        for args in (["push", "one", "me/a", "--public"], ["pull", "me/a", "--out", "runs/b"]):
            done = subprocess.run([*command, *args], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert not made.repos["me/a"]["private"] and (tmp_path / "runs/b/model.safetensors").exists()


LOADED = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("me/model", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("me/model", trust_remote_code=True)
made = model.generate(**tokenizer("It is", return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(tokenizer.decode_bytes(made[0]).hex())
try:
    AutoModelForCausalLM.from_pretrained("me/pickled", trust_remote_code=True)
except Exception as refused:
    print(refused)
"""


def test_transformers_loads_what_was_pushed_and_no_pickle(btlm, trained, hub, tmp_path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    assert btlm("hub", "push", trained, "me/model").returncode == 0
    files = dict(hub.repos["me/model"]["files"])
    hub.add("me/pickled", {**files, "pytorch_model.bin": pickle.dumps(os.getcwd)})
    del hub.repos["me/pickled"]["files"]["model.safetensors"]
    environment = {
        **os.environ,
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made, refused = done.stdout.splitlines()
    wanted = generate_bytes(load_checkpoint(trained), [b"It is"], 8, Sampling(temperature=0))[0]
    assert bytes.fromhex(made) == b"It is" + wanted
    assert "me/pickled: got no model.safetensors" in refused
    assert not any("pytorch_model" in path for path in hub.asked)


def holds_the_token(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_login_says_whose_token_there_is_and_shows_it_nowhere(btlm, trained, hub, monkeypatch, tmp_path, caplog):
    caplog.set_level("DEBUG")
    said = btlm("hub", "login")
    assert said.returncode == 0 and "as me, with a token from the variable HF_TOKEN; its role is write" in said.stdout
    made = json.loads(btlm("hub", "login", "--json").stdout)
    assert made["user"] == "me" and made["endpoint"].startswith("http://127.0.0.1:") and "token" not in made
    pushed = btlm("hub", "push", trained, "me/model")
    everything = [said, pushed, btlm("hub", "pull", "me/model", "--out", "runs/back")]
    for given, says in (("hf_wrong", "does not know it"), ("", "got no token of the hub")):
        monkeypatch.setenv("HF_TOKEN", given)
        everything.append(btlm("hub", "login"))
        assert everything[-1].returncode == 2 and says in everything[-1].stderr and "HF_TOKEN" in everything[-1].stderr
        assert len(everything[-1].stderr.splitlines()) == 1
    (tmp_path / "no-token").write_text(TOKEN)  # where `hf auth login` puts it
    everything.append(btlm("hub", "login"))
    assert "from the hub's library (hf auth login)" in everything[-1].stdout
    assert not any(word in done.stdout + done.stderr for done in everything for word in (TOKEN, "hf_wrong"))
    assert TOKEN not in caplog.text and holds_the_token(tmp_path) == [str(tmp_path / "no-token")]
    both = btlm("hub", "login", "--keep", "--forget")
    assert both.returncode == 2 and "only one of them" in both.stderr


def test_a_token_is_kept_in_the_keyring_and_nowhere_else(btlm, trained, hub, monkeypatch, tmp_path, caplog):
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class InMemory(KeyringBackend):
        priority = 5.0  # type: ignore[assignment]

        def __init__(self) -> None:
            self.held: dict[tuple[str, str], str] = {}

        def get_password(self, service: str, username: str) -> str | None:
            return self.held.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.held[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            del self.held[service, username]

    caplog.set_level("DEBUG")
    monkeypatch.delenv("HF_TOKEN")
    before, ring = keyring.get_keyring(), InMemory()
    keyring.set_keyring(ring)
    try:
        refused = btlm("hub", "login", "--keep", stdin=b"hf_wrong\n")
        assert refused.returncode == 2 and not ring.held  # one that the hub does not know is not kept
        kept = btlm("hub", "login", "--keep", stdin=f"{TOKEN}\n".encode())
        assert kept.returncode == 0 and "kept in the system's keyring" in kept.stdout, kept.stderr
        assert list(ring.held.values()) == [TOKEN]
        assert "from the system's keyring" in btlm("hub", "login").stdout
        assert btlm("hub", "push", trained, "me/model").returncode == 0  # it is used
        assert btlm("hub", "login", "--forget").returncode == 0 and not ring.held
        assert "has no token" in btlm("hub", "login", "--forget").stdout
        InMemory.priority = 0.5  # type: ignore[assignment] - as of files that anybody can read
        unsafe = btlm("hub", "login", "--keep", stdin=f"{TOKEN}\n".encode())
        assert unsafe.returncode == 2 and "no safe keyring" in unsafe.stderr and not ring.held
        for done in (refused, kept, unsafe):
            assert TOKEN not in done.stdout + done.stderr and "hf_wrong" not in done.stdout + done.stderr
    finally:
        keyring.set_keyring(before)
    assert TOKEN not in caplog.text and holds_the_token(tmp_path) == []


def test_without_the_library_the_error_says_how_to_get_it(btlm, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = btlm("hub", "push", trained, "me/model")
    assert done.returncode == 2 and "pip install 'bit-transformer[hub]'" in done.stderr


def test_an_export_is_one_file_whose_bytes_follow_from_the_model(btlm, trained, tmp_path, monkeypatch):
    assert btlm("export", trained, "one.zip").returncode == 0
    with zipfile.ZipFile("one.zip") as archive:
        names = ["README.md", "config.json", "metrics.csv", "model.safetensors"]
        names += ["modeling_bit_transformer.py", "tokenizer_config.json"]
        assert archive.namelist() == names and archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.read("model.safetensors") == (trained / "model.safetensors").read_bytes()
        assert archive.read("metrics.csv") == (trained / "metrics.csv").read_bytes()
        card = archive.read("README.md").decode()
        assert "unzip one.zip -d runs/one" in card and str(tmp_path) not in card
        assert str(tmp_path) not in archive.read("config.json").decode()
        archive.extractall("unpacked")
    assert btlm("generate", "unpacked", "--bytes", 4, "--seed", 1).returncode == 0
    before = Path("one.zip").read_bytes()
    os.utime(trained / "model.safetensors")
    refused = btlm("export", trained, "one.zip")
    assert refused.returncode == 2 and "Try --overwrite, or another out" in refused.stderr
    made = json.loads(btlm("export", trained, "one.zip", "--overwrite", "--json").stdout)
    assert Path("one.zip").read_bytes() == before and made["bytes"] == len(before) and set(made["files"]) == set(names)
    calibrated(btlm, trained)
    job = Job(lambda message: job.cancel())
    with pytest.raises(Cancelled):
        asked = {"run": str(trained), "out": "one.zip", "overwrite": True}
        call("export", asked, Workspace(), job)
    assert Path("one.zip").read_bytes() == before and not list(tmp_path.glob(".one*"))
    assert btlm("export", trained, "two.zip").returncode == 0
    with zipfile.ZipFile("two.zip") as archive:
        assert "gate.safetensors" in archive.namelist() and "20.00% false alarms" in archive.read("README.md").decode()


def test_over_a_server_models_go_to_places_of_its_home(trained, hub, tmp_path):
    home = Home(tmp_path / "home")
    shutil.copytree(trained, home.runs / "one")
    fields, run = home.prepare("export", {"run": "one"})
    made = call("export", home.request("export", fields).model_dump(), home.workspace("cpu"))
    assert run == "one" and [upload.name for upload in home.list_uploads()] == ["one.zip"]
    assert zipfile.is_zipfile(home.upload_path(fields["out"])) and made.bytes
    fields, run = home.prepare("hub.push", {"run": "one", "repo": "me/model"})
    call("hub.push", home.request("hub.push", fields).model_dump(), home.workspace("cpu"))
    fields, run = home.prepare("hub.pull", {"repo": "me/model", "out": "two"})
    call("hub.pull", home.request("hub.pull", fields).model_dump(), home.workspace("cpu"))
    assert run == "two" and (home.runs / "two/model.safetensors").is_file()
    for out in ("../two", "/tmp/two", ".two"):
        with pytest.raises(ConfigError, match="a name has"):
            home.prepare("hub.pull", {"repo": "me/model", "out": out})


def test_checkpoints_that_were_kept_and_copies_are_told_apart_from_what_was_evaluated(btlm, trained):
    kept = trained / "checkpoints" / "10"
    kept.mkdir(parents=True)
    (kept / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    assert btlm("quantize", trained, "--no-measure", "--out", "runs/small.safetensors").returncode in (0, 2)
    assert btlm("export", kept, "kept.zip").returncode == 0
    with zipfile.ZipFile("kept.zip") as archive:
        card = archive.read("README.md").decode()
    assert "# one@10" in card and "Not evaluated." in card and "| trained on | text.txt" in card
