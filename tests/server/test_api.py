"""The server's API: who may ask for what, how errors look, what is kept and what is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import sqlite3
import stat
import zipfile

import pytest
from fastapi.testclient import TestClient

from bit_transformer import errors
from bit_transformer.server.app import create_app
from bit_transformer.server.errors import STATUS, status_of
from bit_transformer.server.security import Bounded, is_loopback
from bit_transformer.service.home import Home, _places
from bit_transformer.service.job_process import as_request
from bit_transformer.service.operations import OPERATIONS
from bit_transformer.service.requests import Place
from tests.conftest import TEXT
from tests.server.conftest import QUICK, TINY

WRITES = ("POST", "PUT", "PATCH", "DELETE")


def routes(client: TestClient) -> list[tuple[str, str]]:
    """(method, path) of all routes, with ids filled in."""
    found = []
    for path, methods in client.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        filled = re.sub(r"\{(job|trigger)\}", "1", re.sub(r"\{upload\}", "0" * 12, path))
        filled = re.sub(r"\{\w+\}", "x", filled)
        found += [(method.upper(), filled) for method in methods]
    return found


def test_every_write_needs_the_token_and_reads_do_not(client, home):
    there = routes(client)
    assert len([method for method, _ in there if method in WRITES]) >= 15
    for method, path in there:
        if path == "/api/events":  # has no end; tests/server/test_events.py reads it
            continue
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
            answer = client.request(method, path, headers=headers)
            if method in WRITES or path == "/api/audit" or headers["Authorization"]:
                assert answer.status_code == (200 if path == "/api/health" else 401), (method, path, headers)
            else:
                assert answer.status_code in (200, 404), (method, path)
        assert client.request(method, path).status_code != 401


def test_on_other_interfaces_everything_needs_the_token(home):
    app = create_app(home, host="0.0.0.0", hosts=frozenset({"box.example"}), device="cpu")
    with TestClient(app, base_url="http://box.example") as client:
        for method, path in routes(client):
            if path not in ("/api/health", "/api/events"):
                assert client.request(method, path).status_code == 401, path
        right = {"Authorization": f"Bearer {home.token()[0]}"}
        assert client.get("/api/runs", headers=right).status_code == 200
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org") and not is_loopback("192.168.0.1")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil.example", "[::1"])
def test_another_host_is_refused(client, host):
    answer = client.get("/api/runs", headers={"Host": host})
    assert answer.status_code == 421 and answer.json()["error"] == "WrongHost"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "http://127.0.0.1.evil.example:7000"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_request_of_a_foreign_page_is_refused(client, headers):
    for method, path in (("GET", "/api/runs"), ("POST", "/api/jobs"), ("OPTIONS", "/api/jobs")):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"] == "WrongOrigin"
    assert client.get("/api/runs", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_nothing_executes_code(client):
    """No route whose name says so, and none by any other name: every route is one that is known here."""
    for name in ("exec", "execute", "eval", "run", "shell", "python", "command", "cmd", "console", "admin", "debug"):
        for prefix in ("/", "/api/"):
            for method in ("GET", *WRITES):
                assert client.request(method, prefix + name, json={"code": "1"}).status_code == 404
    for path in client.app.openapi()["paths"]:  # type: ignore[attr-defined]
        assert not re.search(r"exec|eval|shell|python|cmd|console|debug", path), path
    known = {"health", "system", "schema", "presets", "recipes", "operations", "audit"}
    known |= {"runs", "events", "checkpoints", "jobs", "corpora", "uploads"}
    assert {path.split("/")[2] for path in client.app.openapi()["paths"]} == known  # type: ignore[attr-defined]


def test_every_error_has_a_status_and_one_shape(client):
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BitTransformerError)
    ]
    for kind in kinds:
        assert 400 <= status_of(kind.__new__(kind)) <= 503
    assert set(STATUS) <= set(kinds)
    answers = [
        client.get("/api/runs/none"),
        client.get("/api/jobs/77"),
        client.get("/api/nothing"),
        client.put("/api/runs"),
        client.get("/api/runs?limit=x"),
        client.get("/api/runs/..%2f..%2fetc"),
        client.post("/api/jobs", content=b"{", headers={"content-type": "application/json"}),
        client.post("/api/jobs", json={"operation": "train", "request": {"out": "x"}}),
        client.post("/api/operations/none", json={}),
    ]
    for answer in answers:
        body = answer.json()
        assert 400 <= answer.status_code < 500 and set(body) == {"error", "message", "field", "tries"}
        assert "\n" not in body["message"] and "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("operation", "request_", "field"),
    [
        ("train", {"out": "../x"}, "out"),
        ("train", {"out": "/tmp/x"}, "out"),
        ("train", {"out": ".hidden"}, "out"),
        ("train", {"out": "a" * 65}, "out"),
        ("train", {"out": 7}, "out"),
        ("train", {"out": "x", "model": {"d_modell": 3}}, "d_modell"),
        ("train", {"out": "x", "data": {"corpora": ["/etc/passwd"]}}, "data.corpora"),
        ("train", {"out": "x", "data": {"corpora": ["../token"]}}, "data.corpora"),
        ("train", {"out": "x", "data": {"corpora": ["-"]}}, "data.corpora"),
        ("train", {"out": "x", "data": {"corpora": ["upload:../../token"]}}, "data.corpora"),
        ("train", {"out": "x", "data": {"corpora": ["data:none"]}}, "data.corpora"),
        ("train", {"out": "x", "data": {"corpora": "stdlib"}}, "data.corpora"),
        ("train", {"out": "x", "init": "/etc/passwd"}, "init"),
        ("resume", {"out": "/tmp"}, "out"),
        ("compress", {"path": "/etc/passwd"}, "path"),
        ("decompress", {"path": "token"}, "path"),
        ("evaluate", {"run": "../home", "names": ["stdlib"]}, "run"),
        ("calibrate", {"run": "x@1/../..", "names": []}, "run"),
        ("shell", {}, "operation"),
    ],
)
def test_names_are_never_paths(client, operation, request_, field):
    filled = {"model": TINY, "train": QUICK, "data": {"corpora": ["stdlib"]}} if operation == "train" else {}
    answer = client.post("/api/jobs", json={"operation": operation, "request": {**filled, **request_}})
    assert answer.status_code in (404, 409, 422), answer.text
    assert (answer.json()["field"] or "").endswith(field)
    assert client.get("/api/jobs").json() == []


@pytest.mark.parametrize("name", ["score", "telemetry"])
def test_no_path_is_taken_for_a_plot(client, name):
    answer = client.post(f"/api/operations/{name}", json={"name": "stdlib", "plot": "/tmp/x.png"})
    assert answer.status_code == 422 and "no paths are taken" in answer.json()["message"]


def test_every_field_that_names_a_place_says_so():
    """A new field that takes a path must not be reachable with one by accident."""
    plain = {"metric", "action", "engine", "learning", "order", "repo", "revision", "message", "state", "tasks"}
    plain |= {
        "preset",
        "variants",
        "log",
        "models",
        "title",
        "proofs",  # checksums
        "called",  # only shown, or looked for in a list
        "field",  # of lines of JSON
    }  # of the advisor: names, settings and text that it only reads
    for operation in OPERATIONS.values():
        places = dict(_places(operation.request))
        for name, info in operation.request.model_fields.items():
            text = str(info.annotation)
            if re.search(r"\bPath\b", text) or (
                re.search(r"\bstr\b", text) and "dict" not in text and name not in plain
            ):
                assert isinstance(places.get(name), Place), (operation.name, name)


def test_uploads_are_kept_as_they_are_and_never_unpacked(client, home):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil", bytes(50 << 20))
    made = client.post("/api/uploads?name=..%2F..%2Fevil.zip", content=bomb.getvalue())
    assert made.status_code == 201 and made.json()["bytes"] == len(bomb.getvalue()) < 1 << 20
    (kept,) = [source for source in client.get("/api/corpora").json() if source["kind"] == "upload"]
    assert kept["name"] == "evil.zip" and kept["id"] == made.json()["id"]
    files = [path for path in home.uploads.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["about.json", "data"]
    number = kept["id"].removeprefix("upload:")
    got = client.get(f"/api/uploads/{number}")
    assert got.content == bomb.getvalue() and "attachment" in got.headers["content-disposition"]
    assert client.delete(f"/api/uploads/{number}").status_code == 200 and not list(home.uploads.iterdir())
    assert client.post("/api/uploads", content=b"").status_code == 422 and not list(home.uploads.iterdir())


def test_bodies_have_limits(home):
    app = create_app(home, device="cpu", upload_bytes=1 << 20)
    token = {"Authorization": f"Bearer {home.token()[0]}"}
    with TestClient(app, base_url="http://127.0.0.1", headers=token) as client:
        assert client.post("/api/uploads", content=bytes(1 << 20)).status_code == 201
        assert client.post("/api/uploads", content=bytes((1 << 20) + 1)).status_code == 413
        # Without a length it is counted, and refused when it is too much.
        assert client.post("/api/uploads", content=(bytes(1 << 18) for _ in range(5))).status_code == 413
        prompt = {"run": "x", "prompts": [base64.b64encode(bytes(10 << 20)).decode()]}
        assert client.post("/api/operations/generate", json=prompt).status_code == 413
        assert client.get("/api/runs", headers={"Content-Length": "abc"}).status_code == 413
        assert len(list(home.uploads.iterdir())) == 1


def test_requests_have_a_rate():
    now = [0.0]
    bounded = Bounded(app=None, upload_bytes=1, clock=lambda: now[0])  # type: ignore[arg-type]
    scope = {"client": ("127.0.0.1", 1)}
    allowed = sum(bounded._may(scope) for _ in range(1000))
    assert allowed == 400 and bounded._may({"client": ("127.0.0.2", 1)})
    now[0] = 1.0
    assert sum(bounded._may(scope) for _ in range(1000)) == 100
    now[0] = -50.0  # a clock that goes back gives nothing, and takes nothing
    assert not bounded._may(scope)
    now[0] = 1.0
    assert sum(bounded._may(scope) for _ in range(1000)) <= 5200


def test_the_token_is_made_once_and_for_its_owner_only(home):
    token, new = home.token()
    assert new and len(token) >= 40 and home.token() == (token, False)
    assert stat.S_IMODE((home.folder / "token").stat().st_mode) == 0o600
    (home.folder / "token").write_text("")
    with pytest.raises(errors.ConfigError, match="holds no token"):
        home.token()


def test_writes_are_in_the_audit_log(client):
    client.post("/api/uploads", content=b"abc")
    client.post("/api/jobs", headers={"Authorization": "Bearer wrong"})
    client.get("/api/runs")
    entries = client.get("/api/audit").json()
    assert [(e["method"], e["path"], e["status"]) for e in entries] == [
        ("POST", "/api/jobs", 401),
        ("POST", "/api/uploads", 201),
    ]


def test_schemas_presets_and_recipes_are_what_a_form_needs(client):
    schema = client.get("/api/schema").json()
    assert schema["model"]["properties"]["d_model"]["description"] and set(schema) == {
        "model",
        "train",
        "data",
        "distributed",
    }
    assert set(client.get("/api/presets").json()) == {"tiny", "small", "medium", "large"}
    assert "tinyshakespeare-cpu" in client.get("/api/recipes").json()
    names = {operation["name"] for operation in client.get("/api/operations").json()}
    assert names == set(OPERATIONS)
    assert client.get("/openapi.json").json()["openapi"].startswith("3.")


def test_a_declared_folder_is_data(client, home, tmp_path):
    folder = tmp_path / "my texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(TEXT)
    assert home.declare(folder) == "data:my-texts"
    assert home.source("data:my-texts", "name") == str(folder)
    assert {"id": "data:my-texts", "kind": "data", "name": str(folder), "bytes": None} in client.get(
        "/api/corpora"
    ).json()
    with pytest.raises(errors.BitStreamError, match="does not exist"):
        home.declare(tmp_path / "none")


def test_a_run_of_another_folder_is_found_by_its_name(client, home, tmp_path):
    home.store.begin("elsewhere", tmp_path / "far", {"model": TINY, "train": QUICK, "data": {}})
    (tmp_path / "far").mkdir()
    assert home.run_folder("elsewhere") == tmp_path / "far"
    assert client.get("/api/runs/elsewhere").json()["status"] == "killed"
    assert client.get("/api/runs/elsewhere/checkpoints").json() == []
    assert client.get("/api/runs/elsewhere/files/token").status_code == 404
    assert client.delete("/api/runs/elsewhere").status_code == 200
    assert client.get("/api/runs/elsewhere").status_code == 404


def test_odd_requests_are_refused_and_not_faults(client, home):
    home.store.begin("a", home.runs / "a", {"model": TINY, "train": QUICK, "data": {}})
    (home.runs / "a").mkdir()
    odd = b'{"operation": "train", "request": {"\\ud800": 1}}'
    json = {"content-type": "application/json"}
    answers = [
        client.post("/api/jobs", content=odd, headers=json),
        client.post("/api/operations/runs.show", content=b'{"\\ud800": 1}', headers=json),
        client.post("/api/runs/a/resume", content=b'{"budget": {"\\ud800": 1}}', headers=json),
        client.post("/api/runs/a/resume", content=b'{"budget": {"seconds": Infinity}}', headers=json),
        client.delete("/api/runs/a/triggers/99999999999999999999999"),
        client.post("/api/runs/a/change", content=b'{"settings": {"lr": NaN}}', headers=json),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.text
    assert client.get("/api/jobs").json() == []


def test_one_job_at_a_time_trains_a_run(client, home):
    data = client.post("/api/uploads?name=x", content=TEXT).json()["id"]
    request = {"out": "a", "model": TINY, "train": QUICK, "data": {"corpora": [data]}}
    client.app.state.server.scheduler.close()  # type: ignore[attr-defined]
    assert client.post("/api/jobs", json={"operation": "train", "request": request}).status_code == 201
    twice = client.post("/api/jobs", json={"operation": "train", "request": request})
    assert twice.status_code == 409 and "job 1 trains it" in twice.json()["message"]


def test_a_refused_request_leaves_no_files(client, home):
    assert (
        client.post("/api/jobs", json={"operation": "compress", "request": {"path": "upload:" + "0" * 12}}).status_code
        == 404
    )
    assert not list(home.uploads.iterdir())


def test_a_copy_that_no_record_is_of_can_be_removed(client, home):
    (home.runs / "a-int8").mkdir()
    (home.runs / "a-int8" / "model.safetensors").write_bytes(b"x")
    assert client.delete("/api/runs/a-int8").status_code == 404
    assert client.delete("/api/runs/a-int8?files=true").status_code == 200 and not (home.runs / "a-int8").exists()
    assert client.delete("/api/runs/none?files=true").status_code == 404


def test_a_store_of_a_newer_version_is_left_where_it_is(home):
    home.store.begin("a", home.runs / "a", {})
    with contextlib.closing(sqlite3.connect(home.store_path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(errors.StoreError, match="newer version"):
        create_app(home, device="cpu")
    assert home.store_path.exists() and not list(home.folder.glob("*damaged*"))


def test_after_a_damaged_store_jobs_have_new_numbers(home):
    home.jobs.add("train", {}, "a")
    (home.jobs_folder / "7").mkdir()
    home.store_path.write_bytes(b"no database" * 1000)
    for more in home.folder.glob("runs.sqlite-*"):
        more.unlink()
    assert home.open_store() and home.jobs.add("train", {}, "a").id == 8


def test_paths_in_answers_are_ids(home):
    value = {
        "a": [f"{home.runs}/demo: no", f"{home.runs}/demo/checkpoints/12"],
        "b": f"{home.uploads}/{'0' * 12}/data",
        "c": 1,
    }
    assert home.named(value) == {"a": ["demo: no", "demo@12"], "b": f"upload:{'0' * 12}", "c": 1}


@pytest.mark.parametrize(
    ("advice", "words"),
    [
        ("again later", "again later"),
        (errors.Give("bits"), "another bits"),
        (errors.Give("overwrite", True), "overwrite=true"),
        (errors.Ask("runs.list"), "GET /api/runs"),
        (errors.Ask("resume", "/home/me/runs/a"), "POST /api/runs/a/resume"),
        (errors.Ask("calibrate", "/home/me/runs/a"), "POST /api/jobs with operation calibrate for run a"),
        (errors.Ask("infill", "a", (errors.Give("data", "x"),)), 'POST /api/operations/infill for run a, data="x"'),
    ],
)
def test_advice_is_in_words_of_http(advice, words):
    assert as_request(advice) == words


def test_a_run_whose_job_has_not_begun_it_is_not_unknown(client, home):
    client.app.state.server.scheduler.close()  # type: ignore[attr-defined]
    home.jobs.add("train", {}, "soon")
    for method, path in (("GET", "/api/runs/soon"), ("POST", "/api/runs/soon/pause")):
        answer = client.request(method, path)
        assert answer.status_code == 409 and "job 1 is queued" in answer.json()["message"]
    assert client.get("/api/runs/never").status_code == 404


def test_two_homes_do_not_share_anything(tmp_path):
    first, second = Home(tmp_path / "a"), Home(tmp_path / "b")
    assert first.token()[0] != second.token()[0] and first.store_path != second.store_path
