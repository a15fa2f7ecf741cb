"""Requests that follow the API's own description, and many that do not: no fault of the server, and no answer that the description does not name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs Python 3.11")

from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bit_transformer.server.app import create_app  # noqa: E402
from bit_transformer.service.home import Home  # noqa: E402
from tests.server.conftest import QUICK, TINY  # noqa: E402

CASES = int(os.environ.get("BTLM_API_CASES", "12"))  # of each route; 200 give more than 5,000 in all
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ENDLESS = "/api/events"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with a run, a job and an upload. It starts no jobs."""
    home = Home(tmp_path_factory.mktemp("home"))
    app = create_app(home, device="cpu")
    app.state.server.scheduler.start = lambda: None
    home.store.begin("known", home.runs / "known", {"model": TINY, "train": QUICK, "data": {}})
    home.store.add_metrics("known", [(step, "train_bpb", float(step)) for step in range(100)])
    home.store.add_trigger("known", "K", 0.5, None, "pause")
    home.jobs.add("train", {}, "known")
    _, path = home.new_upload("x")
    path.write_bytes(b"abc")
    with (
        pytest.MonkeyPatch.context() as patched,
        TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as made,
    ):
        patched.setattr("bit_transformer.server.security.BURST", 1e9)
        made.headers["Authorization"] = f"Bearer {home.token()[0]}"
        yield made


def test_the_api_keeps_to_its_description(client):
    schema = schemathesis.openapi.from_dict(client.app.openapi())
    made = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS:
            continue

        @settings(
            max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def check(case: schemathesis.Case, known: bool) -> None:
            nonlocal made
            made += 1
            if known:  # else nearly all ids would be of things that are not there
                ids = {"run": "known", "job": 1, "trigger": 1, "name": "histogram"}
                case.path_parameters = {
                    name: ids.get(name, value) for name, value in (case.path_parameters or {}).items()
                }
            asked = case.as_transport_kwargs(base_url="http://127.0.0.1")
            headers = {k: v for k, v in asked["headers"].items() if k.lower() not in ("user-agent", "accept-encoding")}
            body = {"json": asked["json"]} if "json" in asked else {"content": asked.get("data") or b""}
            answer = client.request(asked["method"], asked["url"], params=asked.get("params"), headers=headers, **body)
            case.validate_response(answer, checks=CHECKS)

        check()
    print(f"{made:,} requests")
    assert made >= 25 * CASES
