"""What an agent's questions cost: calls and tokens for ten questions about a store of runs, tokens of the listing, seconds to start.

Tokens are estimated as bytes / 3.5; no tokenizer is shipped with this project.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from seeded_store import seed

from bit_transformer.service.home import Home

QUESTIONS = Path(__file__).with_name("agent_questions.json")
ROOT = Path(__file__).parents[1]
BYTES_PER_TOKEN = 3.5


def main(quick: bool) -> int:
    """Measure."""
    goals = {
        "answered": ">= 10",
        "most_calls": "<= 3",
        "most_tokens": "<= 2000",
        "listing_tokens": "<= 6000",
        "start_s": "<= 2",
    }
    report = harness.Report("agents", "ten read-only questions over stdio; a token is 3.5 bytes", goals)
    with tempfile.TemporaryDirectory(prefix="btlm-agents-") as place:
        home = Home(Path(place))
        seed(home)
        asyncio.run(_measure(home, report, 1 if quick else 5))
    return report.finish()


async def _measure(home: Home, report: harness.Report, starts: int) -> None:
    times = []
    for _ in range(starts):
        began = time.perf_counter()
        async with client(home, "--jobs", "1") as there:
            listed = (await there.list_tools()).tools
            times.append(time.perf_counter() - began)
    report.figures["start_s"] = statistics.median(times)
    report.figures["tools"] = float(len(listed))
    report.figures["listing_tokens"] = tokens(
        [tool.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in listed]
    )
    async with client(home) as there:
        found = [await ask(there, question) for question in json.loads(QUESTIONS.read_text())]
    for question, answer in zip(json.loads(QUESTIONS.read_text()), found, strict=True):
        right = "right" if answer["right"] else f"WRONG, {question['expected']!r} is expected"
        report.row(
            question["question"],
            f"{answer['answer']!r} {right}; {answer['calls']} calls, {answer['tokens']:.0f} tokens",
        )
    report.figures["answered"] = float(sum(answer["right"] for answer in found))
    report.figures["most_calls"] = float(max(answer["calls"] for answer in found))
    report.figures["most_tokens"] = max(answer["tokens"] for answer in found)


def client(home: Home, *options: str) -> Client:
    """A client of a server of its own, over standard input and output; without options, it can only read."""
    command = [str(ROOT / "mcp_server.py"), "--stdio", "--home", str(home.folder), *(options or ("--read-only",))]
    return Client(stdio_client(StdioServerParameters(command=sys.executable, args=command)))


async def ask(there: Client, question: dict[str, Any]) -> dict[str, Any]:
    """Make a question's calls, and find the answer in the last result."""
    spent, result = 0.0, None
    for tool, arguments in question["calls"]:
        called = await there.call_tool(tool, arguments)
        assert not called.is_error, called.content
        spent += sum(tokens(part.text) for part in called.content)
        result = called.structured_content
    answer = at(result, question["answer"])
    expected = question["expected"]
    right = abs(answer - expected) <= question["within"] if "within" in question else answer == expected
    return {"answer": answer, "right": right, "calls": len(question["calls"]), "tokens": spent}


def at(value: Any, path: list[Any]) -> Any:
    """What is at a path: keys, indices, {"min": key} for the row with the lowest value, {"where": [key, value]} for the row that has it."""
    for part in path:
        if isinstance(part, dict) and "min" in part:
            value = min((row for row in value if part["min"] in row), key=lambda row: row[part["min"]])
        elif isinstance(part, dict):
            key, wanted = part["where"]
            value = next(row for row in value if row[key] == wanted)
        else:
            value = value[part]
    return value


def tokens(value: Any) -> float:
    """About how many tokens a text, or a value as JSON, has."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return len(text.encode()) / BYTES_PER_TOKEN


if __name__ == "__main__":
    harness.run(main, __doc__)
