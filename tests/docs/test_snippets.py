"""What README and guide show runs as shown, with smaller budgets."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

DOCUMENTS = ("README.md", "USER_GUIDE.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
MAKES = re.compile(r"--out runs/([\w-]+)")

Block = tuple[str, str]  # language, text


def blocks(name: str) -> list[Block]:
    return FENCE.findall((ROOT / name).read_text())


def smaller(text: str) -> str:
    """Budgets cut to a few updates and bytes; nothing else changes."""
    text = re.sub(
        r"(?m)^(btlm (?:train|distill) .*?)--(?:seconds|epochs) \S+",
        r"\1--steps 3 --batch-size 2 --eval-bytes 2000 --set train.feature_cache=0 --set train.eval_bytes=2000",
        text,
    )
    text = re.sub(r"(?m)^btlm evaluate .*", r"\g<0> --primer-bytes 4096", text)
    text = re.sub(r"(?m)^btlm compare \S+", r"\g<0> --seeds 1 --bytes 4096", text)
    text = re.sub(r"(?m)^btlm advise (?!.*--measure).*", r"\g<0> --measure 1", text)
    text = re.sub(r"(?m)^btlm quantize .*", r"\g<0> --eval-bytes 2000", text)
    return re.sub(r"seconds=\d+", "steps=3, feature_cache=0", text)


def runnable(found: list[Block]) -> list[Block]:
    return [(kind, text) for kind, text in found if kind == "python" or (kind == "sh" and "make " not in text)]


@dataclass
class Part:
    """Sections of a document that need each other's runs.

    Attributes:
        makes: names of runs.
    """

    document: str
    title: str
    blocks: list[Block]

    @property
    def makes(self) -> set[str]:
        return {name for _, text in self.blocks for name in MAKES.findall(text)}

    def uses(self, names: set[str]) -> set[str]:
        """Those of some runs that it names."""
        words = (
            re.split(r"[\s/]+", text) if kind == "sh" else re.findall(r"runs/([\w-]+)", text)
            for kind, text in self.blocks
        )
        return names & {word for found in words for word in found}


def first_training(name: str) -> tuple[str, str]:
    """A document's first training, which most of its sections use: its run and its line."""
    found = (line for kind, text in blocks(name) if kind == "sh" for line in text.splitlines())
    return next((made[1], line) for line in found if (made := MAKES.search(line)))


def parts(name: str) -> list[Part]:
    """A document in parts that run by themselves, after its first training."""
    _, *texts = re.split(r"(?m)^## (.+)\n", (ROOT / name).read_text())
    shared, _ = first_training(name)
    found: list[Part] = []
    for title, text in zip(texts[::2], texts[1::2], strict=True):
        new = Part(name, title, runnable(FENCE.findall(text)))
        needed = [part for part in found if new.uses(part.makes - {shared})]
        if needed:
            together = Part(name, needed[0].title, [block for part in [*needed, new] for block in part.blocks])
            found = [together if part is needed[0] else part for part in found if part not in needed[1:]]
        elif new.blocks:
            found.append(new)
    return found


PARTS = [part for name in DOCUMENTS for part in parts(name)]


@dataclass
class Folder:
    """Where a document's blocks run.

    Attributes:
        done: trainings that are not run again here.
    """

    path: Path
    done: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """One for each document, for all parts that this process runs."""
    found = {}
    for name in DOCUMENTS:
        found[name] = Folder(tmp_path_factory.mktemp(name.partition(".")[0]))
        for document in DOCUMENTS:
            (found[name].path / document).write_bytes((ROOT / document).read_bytes())
    return found


def run_line(line: str, btlm: Callable) -> None:
    if re.search(r"[|<>]", line):  # a shell's work
        call = f'btlm() {{ {shlex.quote(sys.executable)} -m bit_transformer.cli "$@"; }}'
        subprocess.run(["bash", "-ec", f"{call}\n{line}"], check=True)
        return
    program, *args = shlex.split(smaller(line), comments=True)
    assert program == "btlm"
    done = btlm(*args)
    may_be_blocked = (0, 4) if "--gate" in args else (0,)  # by a model of three updates
    assert done.returncode in may_be_blocked, (line, done.stdout, done.stderr)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.document}: {part.title}")
def test_every_block_runs(part, folders, btlm, monkeypatch, capsys):
    folder = folders[part.document]
    monkeypatch.chdir(folder.path)
    shared, training = first_training(part.document)
    lines = [training] if part.uses({shared}) else []
    for kind, text in [("sh", "\n".join(lines)), *part.blocks]:
        if kind == "python":
            torch.manual_seed(0)
            exec(compile(smaller(text), f"{part.document} block", "exec"), {"__name__": "snippet"})
            continue
        for line in text.strip().splitlines():
            if line not in folder.done:
                run_line(line, btlm)
                folder.done |= {line} & {training}


def test_the_parts_are_all_blocks():
    for name in DOCUMENTS:
        ran = [block for part in parts(name) for block in part.blocks]
        assert sorted(ran) == sorted(runnable(blocks(name))) and len(ran) >= 5


def test_links_and_pictures_lead_somewhere():
    for name in ("README.md", "USER_GUIDE.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/results.md"):
        document = ROOT / name
        text = document.read_text()
        for target in [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r'src(?:set)?="([^"]+)"', text)]:
            assert target.startswith("http") or (document.parent / target).exists(), (name, target)


def test_the_readme_explains_the_exit_codes_as_the_help_text_does(btlm):
    printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", btlm("--help").stdout).split())
    codes = re.findall(r"\d+ .+?(?=, \d+ |$)", re.search(r"Exit codes: (.+?)\.", printed)[1])
    assert len(codes) == 7
    text = " ".join((ROOT / "README.md").read_text().split())
    for code in codes:
        assert code in text, code


@pytest.mark.parametrize("bench", ["tinyshakespeare", "experts"])
def test_the_results_are_the_committed_figures(bench):
    figures = json.loads((ROOT / "docs" / "results" / f"{bench}.json").read_text())["figures"]
    text = (ROOT / "docs" / "results.md").read_text()
    printed = [f"{value:.3f}" for name, value in figures.items() if name.endswith("_bpb")]
    assert printed and all(value in text for value in printed), printed
