"""What CLAUDE.md, AGENTS.md and the skill show runs as shown, with smaller budgets; the MCP configuration and the plugin start the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bit_transformer.data import sources
from tests.conftest import ROOT
from tests.docs.test_snippets import blocks, smaller

SKILL = ".claude/skills/bit-transformer"
TOPICS = (  # in the order in which the skill's commands build on each other: the first trains `runs/first`
    "training",
    "memory",
    "telemetry-and-gates",
    "evaluation",
    "files",
    "generation",
    "server-and-mcp",
)
DOCUMENTS = (*(f"{SKILL}/{topic}.md" for topic in TOPICS), f"{SKILL}/SKILL.md", "CLAUDE.md", "AGENTS.md")
MARKETPLACE, PLUGIN = ".claude-plugin/marketplace.json", ".claude-plugin/plugin.json"

LOG = "step 3\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB.\n"
CHEAPER = {  # what else is added to a command, so that it takes a second
    "advise": ["--measure", "0"],
    "trade": ["--measure", "0"],
    "quantize": ["--no-measure", "--eval-bytes", "2000"],
}
ELSEWHERE = {"claude", "git", "pip"}  # programs of blocks that are not executed, about which nothing is checked
GROUPS = {"runs", "hub"}  # commands that have commands
MADE = {
    "runs",
    "my-corpus",
    "checkpoints",
    "HOME",
    "~",
}  # folders that are not of the repository: commands make or read them
PLACEHOLDERS = {"COMMAND", "NAME"}  # of commands and benchmarks in prose


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def lines(document: str, language: str) -> Iterator[str]:
    """Commands of a document's blocks of a language, without comments."""
    for found, text in blocks(document):
        if found == language:
            for line in text.replace("\\\n", " ").splitlines():
                if command := line.partition("#")[0].strip():
                    yield command


# ---- the documents ----


def test_the_guide_is_short_and_the_skill_links_every_topic():
    assert len(text_of("CLAUDE.md").splitlines()) < 150
    assert {path.name for path in (ROOT / SKILL).iterdir()} == {"SKILL.md", *(f"{topic}.md" for topic in TOPICS)}
    for topic in TOPICS:
        assert f"]({topic}.md)" in text_of(f"{SKILL}/SKILL.md"), topic
        assert len(text_of(f"{SKILL}/{topic}.md").splitlines()) < 80, topic


def test_the_skill_has_front_matter():
    opening, front, _ = re.split(r"^---\n", text_of(f"{SKILL}/SKILL.md"), maxsplit=2, flags=re.M)
    assert opening == ""
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields.keys() == {"name", "description"}
    assert fields["name"] == Path(SKILL).name and re.fullmatch(r"[a-z0-9-]{1,64}", fields["name"])
    assert 20 < len(fields["description"]) <= 1024
    assert ": " not in fields["description"] and " #" not in fields["description"]  # else YAML needs quotes


def prose_of(document: str) -> str:
    """A document without its blocks."""
    return re.sub(r"^```.*?^```", "", text_of(document), flags=re.M | re.S)


def named_paths(document: str) -> Iterator[str]:
    """Links to files, and what is in backticks and looks like a path of the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose_of(document)):
        if "://" not in target:
            yield target
    for code in re.findall(r"`([^`\n]+)`", prose_of(document)):
        for word in code.split():
            looks = "/" in word or re.fullmatch(r"[\w-]+\.(?:md|py|toml)|\.mcp\.json|Makefile", word)
            outside = "://" in word or word.startswith("/") or word.partition("/")[0] in MADE
            if looks and not outside:
                yield word


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    found = list(named_paths(document))
    assert found
    for path in found:
        folders = ((ROOT / document).parent, ROOT, ROOT / "bit_transformer")
        assert any((folder / path).exists() for folder in folders), path


# ---- their commands ----


def test_every_command_runs(btlm, tmp_path: Path, monkeypatch):
    files = sources.stdlib_files()[::20]  # half a megabyte of the standard library in place of ten
    monkeypatch.setattr(sources, "stdlib_files", lambda: files)
    for name in ("README.md", "USER_GUIDE.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "train.log").write_text(LOG)
    ran: dict[str, int] = {}
    for document in DOCUMENTS:
        for line in lines(document, "sh"):
            program, command, *rest = shlex.split(smaller(line))
            assert program == "btlm", line
            done = btlm(command, *rest, *CHEAPER.get(command, ()))
            may_be_blocked = (0, 4) if "--retries" in rest else (0,)  # by a model of three updates
            assert done.returncode in may_be_blocked, (document, line, done.stdout, done.stderr)
            ran[command] = ran.get(command, 0) + 1
    assert ran["train"] == 2 and len(ran) >= 18, ran
    assert "out of memory" in btlm("diagnose", "--log", "train.log").stdout


def help_of(btlm: Callable[..., Any], *command: str) -> str:
    done = btlm(*command, "--help")
    assert done.returncode == 0, command
    return str(done.stdout)


def check_flags(btlm: Callable[..., Any], words: list[str]) -> None:
    """A `btlm` command exists and has the options that are given to it."""
    if words[0] in PLACEHOLDERS:
        return
    command = words[: 2 if words[0] in GROUPS else 1]
    if words[0] == "bench" and words[1] not in PLACEHOLDERS:
        assert (ROOT / "benchmarks" / f"{words[1].replace('-', '_')}.py").is_file(), words
    known = help_of(btlm, *command)
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){word}(?![\w-])", known), (words, word)


def check_line(btlm: Callable[..., Any], line: str) -> None:
    """A line of a block that is not executed, because it takes long, does not end, or needs other machines: what it names is there."""
    program, *words = shlex.split(line)
    if "bit_transformer.cli" in words:  # torchrun ... -m bit_transformer.cli train ...
        words = words[words.index("bit_transformer.cli") + 1 :]
        program = "btlm"
    if program == "btlm":
        check_flags(btlm, words)
    elif program == "python" and words[0] == "mcp_server.py":
        assert (ROOT / words[0]).is_file()
        check_flags(btlm, ["serve", *words[1:]])
    elif program == "make":
        assert re.search(rf"^{words[0]}:", text_of("Makefile"), re.M), line
    elif program == ".":
        assert words == [".venv/bin/activate"]
    elif program in ("pytest", "ruff", "mypy", "lint-imports"):
        assert (Path(sys.executable).parent / program).exists() or shutil.which(program), program
        assert all((ROOT / word).exists() for word in words if word.endswith(".py")), line
    else:
        assert program in ELSEWHERE, line


def test_commands_that_are_not_run_exist_with_their_options(btlm):
    checked = 0
    for document in DOCUMENTS:
        assert {language for language, _ in blocks(document)} <= {"sh", "text"}, document
        for line in lines(document, "text"):
            for command in line.split(" && "):
                check_line(btlm, command)
                checked += 1
        for command in re.findall(r"`((?:btlm|python mcp_server\.py) [^`\n]+)`", prose_of(document)):  # in sentences
            check_line(btlm, command)
            checked += 1
    assert checked >= 50


# ---- the configuration of the server, and the plugin ----


def tools_of(arguments: list[str], folder: Path, home: Path) -> set[str]:
    """Names of the tools of a server over standard input and output."""
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    environment = {**os.environ, "BTLM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    started = StdioServerParameters(command=sys.executable, args=arguments, cwd=folder, env=environment)

    async def ask() -> set[str]:
        async with Client(stdio_client(started)) as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    return asyncio.run(asyncio.wait_for(ask(), 60))


def test_the_project_configuration_starts_the_server(tmp_path: Path):
    pytest.importorskip("mcp", reason="mcp is not installed")
    (server,) = json.loads(text_of(".mcp.json"))["mcpServers"].items()
    name, how = server
    assert (name, how["command"]) == ("bit-transformer", ".venv/bin/python")
    tools = tools_of(how["args"], ROOT, tmp_path)
    listed = {
        tool
        for row in re.findall(r"^\|.*\|$", text_of(f"{SKILL}/server-and-mcp.md"), re.M)
        for tool in re.findall(r"`(\w+)`", row)
    }
    assert listed == tools


def test_the_plugin_starts_the_server_from_another_folder(tmp_path: Path):
    pytest.importorskip("mcp", reason="mcp is not installed")
    plugin = json.loads(text_of(PLUGIN))
    # The plugin's root has .mcp.json too. Of two servers of one name the manifest's is taken.
    assert plugin["mcpServers"].keys() == json.loads(text_of(".mcp.json"))["mcpServers"].keys()
    how = plugin["mcpServers"]["bit-transformer"]
    assert how["command"] == "btlm" and re.search(r"^btlm = ", text_of("pyproject.toml"), re.M)
    folder = tmp_path / "another-project"
    folder.mkdir()
    assert "start_run" in tools_of(["-m", "bit_transformer.cli", *how["args"]], folder, tmp_path / "home")
    assert not list(folder.iterdir())


def test_the_plugin_has_the_version_and_the_files_that_it_names():
    version = re.search(r'^version = "(.+)"', text_of("pyproject.toml"), re.M)[1]
    plugin, market = json.loads(text_of(PLUGIN)), json.loads(text_of(MARKETPLACE))
    (listed,) = market["plugins"]
    assert {plugin["version"], listed["version"], market["metadata"]["version"]} == {version}
    assert plugin["name"] == listed["name"] == market["name"] == "bit-transformer"
    assert f"{listed['name']}@{market['name']}" in text_of("CLAUDE.md")
    assert plugin["description"] and listed["description"] and market["owner"]["name"] == plugin["author"]["name"]
    assert plugin["license"] in text_of("pyproject.toml")
    for path in (listed["source"], plugin["skills"]):
        assert path.startswith("./") and (ROOT / path).is_dir(), (
            path
        )  # relative to the plugin's root, as the client wants it
    assert (ROOT / listed["source"] / PLUGIN).is_file()
    assert (ROOT / plugin["skills"] / plugin["name"] / "SKILL.md").is_file()
