"""The parts of the dashboard that need no browser: texts, cells of bytes, forms, the command line, events, the list of runs."""

from __future__ import annotations

import asyncio
import html
import re
import shlex
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("nicegui")

from bit_transformer.config import DataConfig, ModelConfig, TrainConfig
from bit_transformer.dashboard import charts, formats
from bit_transformer.dashboard.bytecells import (
    cells,
    cells_html,
    marked_ranges,
    parse_bytes,
    plain_html,
    surprise_class,
    with_flips,
)
from bit_transformer.dashboard.bytesview import cost_of_bit
from bit_transformer.dashboard.client import Server, ServerDown, ServerError, decoded, encoded
from bit_transformer.dashboard.command import train_command
from bit_transformer.dashboard.desk import Access
from bit_transformer.dashboard.feed import Feed
from bit_transformer.dashboard.fields import differing, field_named, groups_of, nested
from bit_transformer.dashboard.pages.diffusion import frame_of, in_bytes
from bit_transformer.dashboard.pages.new_run import budget_value, check_name, proposed_name, rate_for
from bit_transformer.dashboard.pages.run_details import command_of
from bit_transformer.dashboard.rows import RunList, chosen, ordered
from bit_transformer.dashboard.sparks import extended, sparkline, spread
from bit_transformer.dashboard.sse import Parser
from bit_transformer.dashboard_app import checked_address, listen, main
from bit_transformer.errors import ConfigError
from bit_transformer.presets import NAMED, of_depth, optim_for
from bit_transformer.service.settings import model_of, read_settings, training_of

SCHEMA = {
    "model": ModelConfig.model_json_schema(),
    "train": TrainConfig.model_json_schema(),
    "data": DataConfig.model_json_schema(),
}
FIELDS = {f.path: f for name in SCHEMA for group in groups_of(name, SCHEMA[name]) for f in group.fields}


# ---- texts ----


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (formats.figure(2.34567), "2.346"),
        (formats.figure(None), formats.UNKNOWN),
        (formats.figure(float("nan")), formats.UNKNOWN),
        (formats.count(1234567), "1,234,567"),
        (formats.count(25_640_320), "25.6 M"),
        (formats.size(999), "999 B"),
        (formats.size(8_400_000), "8.4 MB"),
        (formats.size(840_000_000), "840 MB"),
        (formats.duration(59.6), "1 min 00 s"),
        (formats.duration(7200), "2 h 00 min"),
        (formats.duration(None), formats.UNKNOWN),
        (formats.percent(0.256), "26 %"),
        (formats.short(0.000123456), "0.0001235"),
        (formats.short(3.0), "3"),
        (formats.plain([1, 2.5, True]), "1, 2.5, yes"),
        (formats.ago("2026-01-01T00:00:00Z", datetime(2026, 1, 1, 3, tzinfo=timezone.utc)), "3 h ago"),
        (formats.ago("no time"), formats.UNKNOWN),
    ],
)
def test_numbers_are_short_and_never_wrong(found: str, text: str):
    assert found == text


def test_nested_settings_become_dotted_and_back():
    found = {"train": {"optim": {"lr": 0.1}, "steps": 5}, "model": {"experts": {}}}
    assert formats.flattened(found) == {"train.optim.lr": 0.1, "train.steps": 5, "model.experts": {}}
    assert nested({"train.optim.lr": 0.1, "train.steps": 5}) == {"train": found["train"]}


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_text_can_be_read_in_both_modes(mode: int):
    css = (Path(charts.__file__).parent / "static" / "dashboard.css").read_text()
    blocks = [block.partition("}")[0] for block in css.split("body")[1:3]]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    tones = [light, light | dark][mode]
    for ground in ("ground", "surface", "raised"):
        for text in ("text", "muted", "accent", "bad", "good", "warn"):
            assert contrast(tones[text], tones[ground]) >= 4.5, (text, ground)
    for text in ("accent", "bad", "good", "warn", "calm"):
        assert contrast(tones[text], tones[f"{text}-soft"]) >= 4.5, text
    assert contrast(tones["on-accent"], tones["accent"]) >= 4.5
    for number in range(1, 9):  # lines of charts
        assert contrast(tones[f"c{number}"], tones["surface"]) >= 3, number


# ---- bytes ----


def test_every_byte_has_one_cell_whatever_it_is():
    data = bytes(range(256)) + "½ 語 🙂".encode() + b"\xf0\x9f"
    shown = cells(data)
    assert [cell.value for cell in shown] == list(data)
    assert "語" in [cell.text for cell in shown] and "🙂" in [cell.text for cell in shown]
    assert all(len(cell.text) <= 2 for cell in shown)


def test_cells_are_escaped_and_coloured():
    made = cells_html(b'<b a="1">&\n', [0.0, 0.6, 1.5, 3, 5, 7, 9, 0, 0, 0, 0], prompt=2, masked=[(8, 9)])
    texts = [html.unescape(text) for text in re.findall(r">([^<]*)</span>", made)]
    assert texts == ["<", "b", "\N{NO-BREAK SPACE}", "a", "=", '"', "1", '"', "▒", "&", "↵"]
    assert re.findall(r"\bs\d\b", made)[:7] == ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]
    assert made.count("given") == 2 and made.count("masked") == 1 and "<b " not in made
    assert surprise_class(float("nan")) == "sx"
    assert plain_html(b"a<b\n", 1) == '<span class="given">a</span>&lt;b↵<br>'
    assert cells_html(b"abc", first=2) == '<span class="b" data-at="2">c</span>'


def test_bytes_can_be_typed_as_text_or_digits():
    assert parse_bytes("a½", "text") == "a½".encode()
    assert parse_bytes("48 65,6C 0x6c", "hex") == b"Hell"
    for wrong, part in (("4x", "'x'"), ("486", "3 digits")):
        with pytest.raises(ConfigError, match=part):
            parse_bytes(wrong, "hex")


def test_gaps_and_flips():
    assert marked_ranges(b"a____b____", b"____") == [(1, 5), (6, 10)]
    assert marked_ranges(b"________", b"____") == [(0, 8)]
    assert marked_ranges(b"abc", b"") == []
    data = bytes(50)
    once, again = with_flips(data, 7, 3), with_flips(data, 7, 3)
    assert once == again and sum(byte.bit_count() for byte in once) == 7
    assert with_flips(b"a", 100, 0) == bytes([ord("a") ^ 255])


def test_a_certain_bit_costs_nothing_and_an_impossible_one_is_finite():
    assert cost_of_bit(1, 1.0) == 0 and cost_of_bit(0, 1.0) == 40
    assert cost_of_bit(1, 0.5) == 1


def test_frames_count_in_bytes():
    assert in_bytes([(0, 9), (17, 18)], 9) == ((0, 1), (1, 2))
    piece = {"data": encoded(b"ab"), "byte_bits": 8, "masked": [[8, 16]], "changed": [[0, 3]], "calls": 1, "total": 2}
    found = frame_of(piece)
    assert (found.data, found.masked, found.fresh, found.total) == (b"ab", ((1, 2),), ((0, 1),), 2)


# ---- forms ----


def test_every_setting_has_a_field_with_help_and_a_default_that_survives_typing():
    assert FIELDS["train.optim.lr"].default == 0.003 and FIELDS["model.experts.buckets"].kind == "int"
    assert FIELDS["model.noise"].choices == ("hidden", "flips") and FIELDS["train.amp"].nullable
    for path, field in FIELDS.items():
        assert field.help, path
        assert not differing({path: field.parse(field.text(field.default))}, [field]), path
        assert field.parse("") == field.default


def test_what_is_typed_becomes_a_value():
    assert FIELDS["model.d_model"].parse(" 1_024 ") == 1024
    assert FIELDS["train.optim.lr"].parse("1e-3") == 0.001
    assert FIELDS["model.ngram_orders"].parse("2, 3") == [2, 3]
    assert FIELDS["model.experts.sparse"].parse("[[2], [2, 3]]") == [[2], [2, 3]]
    assert FIELDS["train.qat"].parse(8) == 8
    with pytest.raises(ConfigError, match="whole number") as wrong:
        FIELDS["model.d_model"].parse("12.5")
    assert wrong.value.field == "model.d_model"


def test_only_differences_are_sent_and_the_configs_take_them():
    tiny = of_depth(2).model_dump(mode="json")
    given = {f"model.{path}": value for path, value in formats.flattened(tiny).items()}
    changed = differing({path: value for path, value in given.items() if path in FIELDS}, FIELDS.values())
    assert "model.d_model" not in changed and changed["model.num_layers"] == 2
    assert ModelConfig.of({**nested(changed)["model"], "experts": {}}) == of_depth(2)


def test_errors_find_their_field():
    assert field_named("request.train.optim.lr", FIELDS) == "train.optim.lr"
    assert field_named("ngram_orders[1]", FIELDS) == "model.ngram_orders"
    assert field_named("lr", FIELDS) == "train.optim.lr"
    assert field_named("out", FIELDS) is None and field_named(None, FIELDS) is None


def parsed(line: str) -> tuple[ModelConfig, TrainConfig]:
    """What the command line makes of a command, as far as the dashboard writes any."""
    words = iter(shlex.split(line)[2:])
    flags: dict[str, Any] = {}
    assignments, preset, experts = [], None, None
    for word in words:
        if word == "--set":
            assignments.append(next(words))
        elif word == "--preset":
            preset = next(words)
        elif word == "--no-experts":
            experts = False
        elif word in ("--seconds", "--steps"):
            flags[word[2:]] = float(next(words)) if word == "--seconds" else int(next(words))
        elif word == "--out":
            next(words)
    settings = read_settings(None, assignments)
    model = model_of(settings, preset or "small", None, False, experts)
    return model, training_of(settings, model, flags)


PRESETS = {
    name: of_depth(depth).model_dump(mode="json", exclude_defaults=depth == 4) for name, depth in NAMED.items()
}  # of one, only what differs


@pytest.mark.parametrize(
    "model",
    [
        {**PRESETS["tiny"], "dropout": 0.1, "ngram_orders": [2, 3], "ngram_dropout": [0.1, 0.1, 0.1, 0.1]},
        {**PRESETS["tiny"], "experts": None},
        {**PRESETS["medium"], "experts": {**PRESETS["medium"]["experts"], "orders": [1, 2]}},
        {**PRESETS["tiny"], "causal": False, "experts": None, "ngram_words": False, "ngram_dropout": []},
        {**PRESETS["tiny"], "parity": True, "patch_bits": 9, "max_seq_len": 2304, "ngram_dropout": []},
        {"patch_bits": 4, "experts": {}},
        {"num_layers": 3, "ngram_orders": [2]},
        {},
    ],
)
@pytest.mark.parametrize("preset", ["", "tiny"])
def test_the_command_does_the_same_as_the_form(model: dict[str, Any], preset: str):
    train = {"steps": 50, "optim": {"muon": False}, "progressive": {}}
    request = {"out": "my run", "model": model, "train": train, "data": {"corpora": ["stdlib"], "holdout": 0.2}}
    line = train_command(request, SCHEMA, PRESETS, preset)
    assert parsed(line) == (ModelConfig.of(model), TrainConfig.of(train))
    assert line.startswith("btlm train stdlib --out 'runs/my run'") and "data.holdout=0.2" in line


def test_commands_are_short_where_they_can_be():
    request = {"out": "a", "model": PRESETS["tiny"], "train": {"seconds": 60.0}, "data": {"corpora": ["stdlib"]}}
    assert (
        train_command(request, SCHEMA, PRESETS, "tiny") == "btlm train stdlib --out runs/a --preset tiny --seconds 60"
    )


def test_a_run_says_its_command():
    config = {
        "model": ModelConfig(num_layers=3).model_dump(mode="json"),
        "train": TrainConfig(steps=7, progressive={}).model_dump(mode="json"),
        "data": {
            **DataConfig(corpora=("stdlib",)).model_dump(mode="json"),
            "digest": "ab",
        },  # also what was recorded of it
    }
    line = command_of("demo", config, SCHEMA, PRESETS)
    assert parsed(line) == (ModelConfig(num_layers=3), TrainConfig(steps=7, progressive={}))
    assert line.startswith("btlm train stdlib --out runs/demo --steps 7 --no-experts") and "digest" not in line


def test_the_learning_rate_of_a_preset_is_the_command_lines():
    assert rate_for(PRESETS["tiny"]) == {}
    assert rate_for(PRESETS["medium"])["optim"]["lr"] == pytest.approx(optim_for(of_depth(8)).lr, rel=0.01)


def test_budgets_and_names():
    assert budget_value("steps", "1,000") == 1000 and budget_value("seconds", "0.5") == 0.5
    for wrong in ("", "-1", "many", "inf", "nan"):
        with pytest.raises(ConfigError, match="above 0") as error:
            budget_value("steps", wrong)
        assert error.value.field == "train.steps"
    check_name(proposed_name({}))
    first = proposed_name({})
    assert proposed_name({first: {}}) != first
    for wrong in ("", "../x", "a b", ".hidden", "x" * 65):
        with pytest.raises(ConfigError, match="name"):
            check_name(wrong)


# ---- curves ----


def test_sparklines_stay_small_and_true():
    assert sparkline([]) == "" and sparkline([(1, 1.0)]) == "" and sparkline([(1, 1.0), (1, 2.0)]) == ""
    assert "nan" not in sparkline([(0, 1.0), (1, float("nan")), (2, 2.0)])
    assert sparkline([(0, 3), (1, 3), (4, 3)]).count(",") == 3
    assert spread([3, None, 1], 30) == [(10, 3), (30, 1)]
    kept: list[tuple[float, float]] = []
    for step in range(1000):
        kept = extended(kept, [(step, 0.1 * step)])
        assert len(kept) <= 80
    assert kept[0] == (0, 0) and kept[-1][0] == 999 and kept == sorted(kept)


def test_points_wait_and_are_sent_without_what_is_no_number():
    waiting: dict[str, dict[str, list[float]]] = {}
    charts.joined(waiting, {"K": {"step": [1], "mean": [0.123456789], "min": [0.1], "max": [0.2]}})
    charts.joined(waiting, {"K": {"step": [2], "mean": [float("inf")]}})
    assert charts.rounded(waiting)["K"] == {
        "step": [1, 2],
        "mean": [0.123457, None],
        "min": [0.1, None],
        "max": [0.2, None],
    }


def test_events_become_marks():
    assert charts.mark_of({"kind": "growth", "step": 3}) == {"x": 3, "label": "grown", "tone": "c3"}
    assert (
        charts.mark_of({"kind": "sample", "step": 3}) is None
        and charts.mark_of({"kind": "drift", "step": None}) is None
    )
    assert [m["x"] for m in charts.latest_marks([{"x": i} for i in (5, 1, 3)], 2)] == [3, 5]


# ---- the list of runs ----


def rows() -> RunList:
    found = RunList()
    found.rows = {name: {"id": name, "status": "running", "spark": [], "step": 0} for name in ("b", "a")}
    return found


def test_the_list_follows_the_feed():
    found = rows()
    points = {"step": [5], "mean": [2.5], "min": [2.4], "max": [2.6]}
    found.take("metrics", {"run": "a", "series": {"train_bpb": points}, "live": {"share": 0.5}})
    assert found.rows["a"] | {"train_bpb": 2.5, "step": 5, "share": 0.5, "curve": [(5, 2.5)]} == found.rows["a"]
    found.take("metrics", {"run": "unknown", "series": {"train_bpb": points}})
    found.take("run", {"id": "c", "status": "running"})
    assert list(found.rows) == ["c", "b", "a"]
    found.take("run", {"id": "b", "removed": True})
    assert list(found.rows) == ["c", "a"]
    version = found.version
    found.take("happening", {"run": "a"})
    assert found.version == version


def test_trainings_without_a_record_are_in_the_list():
    found = rows()
    job = {"id": 1, "operation": "train", "run": "new", "state": "queued", "created": "now"}
    found.take("job", job)
    assert [row["status"] for row in found.every()] == ["queued", "running", "running"]
    found.take("job", {"id": 1, "operation": "train", "state": "running"})
    assert found.every()[0]["status"] == "starting"
    found.take("run", {"id": "new", "status": "running"})
    assert [row["id"] for row in found.every()] == ["new", "b", "a"]
    found.take("run", {"id": "new", "status": "stopped"})
    assert found.every()[0]["status"] == "stopped"  # although its job has not ended yet
    found.take("job", {"id": 1, "operation": "train", "state": "stopped"})
    found.take("job", {"id": 2, "operation": "resume", "run": "new", "state": "running"})
    assert found.every()[0]["status"] == "starting"
    found.take("run", {"id": "new", "status": "running"})
    assert found.every()[0]["status"] == "running" and len(found.every()) == 3


def test_runs_are_filtered_and_sorted():
    every = [
        {"id": f"run-{i}", "status": "failed" if i % 2 else "finished", "val_bpb": v}
        for i, v in enumerate((3, None, 1, 2))
    ]
    assert [row["id"] for row in chosen(every, "RUN 2")] == ["run-2"]
    assert len(chosen(every, "", ["failed"])) == 2 and chosen(every, "nothing") == []
    assert [row["val_bpb"] for row in ordered(every, "val_bpb", False)] == [1, 2, 3, None]
    assert [row["val_bpb"] for row in ordered(every, "val_bpb", True)] == [3, 2, 1, None]


# ---- the server's answers ----


def test_events_are_read_wherever_the_chunks_are_cut():
    stream = b': hello\n\nid: 7\nevent: run\ndata: {"a":\ndata: "\xc2\xbd"}\n\nid: 9\n: caught up\n\ndata: x\r\n\r\n'
    for size in (1, 2, 5, len(stream)):
        parser = Parser()
        found = [e for at in range(0, len(stream), size) for e in parser.feed(stream[at : at + size])]
        assert [(e.kind, e.data, e.id) for e in found] == [
            ("run", '{"a":\n"½"}', "7"),
            ("message", "{}", "9"),
            ("message", "x", ""),
        ]


def asked(handler: Any, token: str | None = "secret") -> Server:
    return Server("http://server", lambda: token, httpx.AsyncClient(transport=httpx.MockTransport(handler)))


def test_errors_come_back_in_the_servers_words():
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        found = {
            "error": "ConfigError",
            "message": "got steps=0; int > 0 is needed",
            "field": "train.steps",
            "tries": ["steps=1"],
        }
        return httpx.Response(422, json=found)

    with pytest.raises(ServerError) as refused:
        asyncio.run(asked(handler).call("estimate", model={}))
    assert (refused.value.field, refused.value.status) == ("train.steps", 422)
    assert str(refused.value) == "got steps=0; int > 0 is needed. Try steps=1"


def test_no_answer_is_told_from_a_refusal():
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerDown, match="no answer from the server at http://server"):
        asyncio.run(asked(away).get("runs"))
    with pytest.raises(ServerError, match="status 500"):
        asyncio.run(asked(lambda request: httpx.Response(500, text="<html>")).get("runs"))


def test_streams_give_pieces_and_raise_what_the_server_raises():
    body = b'event: piece\ndata: {"data": "YQ=="}\n\nevent: error\ndata: {"message": "no more", "field": "run"}\n\n'

    async def read() -> list[bytes]:
        found = []
        async for kind, piece in asked(lambda request: httpx.Response(200, content=body)).pieces(
            "generate", prompts=[b"a"]
        ):
            assert kind == "piece"
            found.append(decoded(piece["data"]))
        return found

    with pytest.raises(ServerError, match="no more"):
        asyncio.run(read())


class Script:
    """A server whose event stream ends and begins as it is told."""

    def __init__(self, *streams: Any) -> None:
        self.streams, self.asked = list(streams), list[str]()

    async def live(self, after: str = "") -> AsyncIterator[Any]:
        from bit_transformer.dashboard.sse import Event

        self.asked.append(after)
        if not self.streams:
            await asyncio.sleep(3600)
        now = self.streams.pop(0)
        if isinstance(now, Exception):
            raise now
        yield Event("opened", "{}")
        for number in now:
            yield Event("run", "{}", str(number))


def test_the_feed_reconnects_from_its_cursor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bit_transformer.dashboard.feed.FIRST_WAIT", 0.001)
    script = Script([1, 2], ServerDown("away"), [3], ServerError("unknown cursor", status=422), [1])
    heard: list[str] = []

    async def follow() -> None:
        feed = Feed(script)  # type: ignore[arg-type]
        end = feed.listen(lambda kind, found: heard.append(kind))
        task = asyncio.create_task(feed.run())
        while len(script.asked) < 6:
            await asyncio.sleep(0.005)
        end()
        task.cancel()

    asyncio.run(follow())
    assert script.asked == ["", "2", "2", "3", "", "1"]
    assert heard == ["up", "run", "run", "down", "up", "run", "down", "reset", "up", "run", "down"]


# ---- who may do what ----


def test_a_pasted_token_is_of_its_browser_only():
    access = Access(lambda: "own")
    assert access.token("x") == "own" and access.may_read("x") and access.is_own("own") and not access.is_own("øther")
    access.keep("x", "pasted")
    assert access.token("x") == "pasted" and access.token("y") == "own"
    access.forget("x")
    assert access.token("x") == "own"


def test_where_everybody_is_asked_the_own_token_is_for_nobody():
    access = Access(lambda: "own", ask=True)
    assert access.token("x") is None and not access.may_read("x")
    access.keep("x", "own")
    assert access.token("x") == "own" and access.may_read("x") and not access.may_read("y")


# ---- the command ----


def test_addresses_and_ports_are_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert checked_address("http://127.0.0.1:7000/") == "http://127.0.0.1:7000"
    for wrong in ("127.0.0.1:7000", "", "http://x/api", "ftp://x"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            checked_address(wrong)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("BTLM_HOME", str(tmp_path))
        assert main(["--port", str(port), "--no-browser"]) == 2
        assert f"port {port}" in capsys.readouterr().err
    assert main(["--server", "nowhere"]) == 2
