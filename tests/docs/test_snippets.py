"""What README and guide show runs as shown, with smaller budgets."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(name: str) -> list[tuple[str, str]]:
    return FENCE.findall((ROOT / name).read_text())


def smaller(text: str) -> str:
    """Budgets cut to a few updates; nothing else changes."""
    text = re.sub(
        r"--(?:seconds|epochs) \S+",
        "--steps 3 --batch-size 2 --eval-bytes 2000 --set train.feature_cache=0 --set train.eval_bytes=2000",
        text,
    )
    return re.sub(r"seconds=\d+", "steps=3, feature_cache=0", text)


@pytest.mark.parametrize("name", ["README.md", "USER_GUIDE.md"])
def test_every_block_runs(name, btlm, tmp_path: Path, monkeypatch, capsys):
    for doc in ("README.md", "USER_GUIDE.md"):
        (tmp_path / doc).write_bytes((ROOT / doc).read_bytes())
    ran = 0
    for language, text in blocks(name):
        if language == "sh" and "make " not in text:
            for line in text.strip().splitlines():
                if re.search(r"[|<>]", line):  # a shell's work
                    call = f'btlm() {{ {shlex.quote(sys.executable)} -m bit_transformer.cli "$@"; }}'
                    subprocess.run(["bash", "-ec", f"{call}\n{line}"], check=True)
                    ran += 1
                    continue
                program, *args = shlex.split(smaller(line), comments=True)
                assert program == "btlm"
                done = btlm(*args)
                may_be_blocked = (0, 4) if "--gate" in args else (0,)  # by a model of three updates
                assert done.returncode in may_be_blocked, (line, done.stdout, done.stderr)
                ran += 1
        elif language == "python":
            torch.manual_seed(0)
            exec(compile(smaller(text), f"{name} block", "exec"), {"__name__": "snippet"})
            ran += 1
    assert ran >= 6


def test_links_and_pictures_lead_somewhere():
    for name in ("README.md", "USER_GUIDE.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/results.md"):
        document = ROOT / name
        text = document.read_text()
        for target in [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r'src(?:set)?="([^"]+)"', text)]:
            assert target.startswith("http") or (document.parent / target).exists(), (name, target)


def test_the_readme_explains_the_exit_codes_as_the_help_text_does(btlm):
    printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", btlm("--help").stdout).split())
    codes = re.findall(r"\d+ .+?(?=, \d+ |$)", re.search(r"Exit codes: (.+?)\.", printed)[1])
    assert len(codes) == 6
    text = " ".join((ROOT / "README.md").read_text().split())
    for code in codes:
        assert code in text, code


@pytest.mark.parametrize("bench", ["tinyshakespeare", "experts"])
def test_the_results_are_the_committed_figures(bench):
    figures = json.loads((ROOT / "docs" / "results" / f"{bench}.json").read_text())["figures"]
    text = (ROOT / "docs" / "results.md").read_text()
    printed = [f"{value:.3f}" for name, value in figures.items() if name.endswith("_bpb")]
    assert printed and all(value in text for value in printed), printed
