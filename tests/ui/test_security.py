"""What the dashboard lets in, without a browser where none is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ui.conftest import Process, Site, free_port, sync_api

expect = sync_api.expect
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ({**LINK, "sec-fetch-dest": "iframe"}, 403),
        (LINK, 200),
    ],
)
def test_only_pages_of_its_own_may_ask(site: Site, headers: dict[str, str], status: int):
    answer = httpx.get(site.address, headers=headers, trust_env=False)
    assert answer.status_code == status
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_websocket_checks_its_origin_too(site: Site):
    """The transport that pages use, as another site's page would open it."""
    path = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert httpx.get(site.address + path, trust_env=False).status_code < 500
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        assert httpx.get(site.address + path, headers=headers, trust_env=False).status_code in (403, 421)
        upgrade = {
            **headers,
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "a" * 22 + "==",
        }
        answer = httpx.get(site.address + path.replace("polling", "websocket"), headers=upgrade, trust_env=False)
        assert answer.status_code == 403


def test_it_has_no_page_that_executes_anything(site: Site):
    for path in ("exec", "eval", "run", "shell", "api/exec", "docs", "openapi.json"):
        assert httpx.get(f"{site.address}/{path}", trust_env=False).status_code == 404
    for path in ("assets/../app.py", "assets/%2e%2e/app.py", "download/first/..%2f..%2ftoken", "download/..%2f/token"):
        answer = httpx.get(f"{site.address}/{path}", trust_env=False)
        assert answer.status_code >= 400 and site.token not in answer.text


def test_where_the_token_is_asked_for_nothing_is_shown_without(site: Site, browser: Any, tmp_path: Path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    app = ["-m", "bit_transformer.dashboard_app", "--port", str(port), "--no-browser", "--ask-token"]
    dashboard = Process(app, site.dashboard.env, tmp_path / "log", address)
    try:
        page = browser.new_context(base_url=address).new_page()
        page.goto("/")
        expect(page.get_by_role("heading", level=1)).to_have_text("This dashboard asks for the server's token")
        assert page.get_by_role("table").count() == 0
        assert httpx.get(f"{address}/download/first/config.json", trust_env=False).status_code == 401
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Use this token").click()
        expect(page.get_by_text(re.compile("does not take this token"))).to_be_visible()
        page.get_by_label("Token").fill(site.token)
        page.get_by_role("button", name="Use this token").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
        other = browser.new_context(base_url=address).new_page()
        other.goto("/settings")
        expect(other.get_by_role("heading", level=1)).to_have_text("This dashboard asks for the server's token")
    finally:
        dashboard.stop()
