"""The map is the tree, the public names are there, and nothing heavy loads early."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bit_transformer
from bit_transformer.compiled import SOURCES, _stamp
from bit_transformer.experts.kernels import read
from tests.conftest import ROOT


def mapped_files() -> set[str]:
    block = (ROOT / "ARCHITECTURE.md").read_text().split("```\n")[1]
    folders: list[str] = []
    files: set[str] = set()
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join(folders) + name)
    return files


def test_the_map_is_the_tree():
    tree = {str(path.relative_to(ROOT)) for path in (ROOT / "bit_transformer").rglob("*.py")}
    assert mapped_files() == tree


def test_public_names_load_and_no_other_is_offered():
    for name in bit_transformer.__all__:
        assert getattr(bit_transformer, name) is not None
    assert dir(bit_transformer) == bit_transformer.__all__
    try:
        _ = bit_transformer.nothing
    except AttributeError as error:
        assert "nothing" in str(error)


def test_help_records_configs_and_bits_load_without_torch():
    modules = ["cli.main", "runs.store", "config", "bit_io", "data.sources"]
    code = f"import sys, {', '.join(f'bit_transformer.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_prints_nothing_and_changes_no_threads():
    code = "import torch; n = torch.get_num_threads(); import bit_transformer as b; [getattr(b, x) for x in b.__all__]; assert torch.get_num_threads() == n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_versions_agree():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


PRINTS = {"server/__init__.py", "service/job_process.py"}  # entry points of processes, beside the command line


def test_every_tensor_free_module_has_a_docstring_and_no_print():
    for path in (ROOT / "bit_transformer").rglob("*.py"):
        text = path.read_text()
        assert text.startswith('"""'), path
        if "cli" not in path.parts and path.relative_to(ROOT / "bit_transformer").as_posix() not in PRINTS:
            assert not re.search(r"^\s*print\(", text, re.M), path


def test_every_file_with_loops_is_in_the_stamp_of_what_is_cached() -> None:
    package = ROOT / "bit_transformer"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"from bit_transformer\.compiled import|from numba\.extending import", path.read_text())
    }
    assert found | {"compiled.py"} == set(SOURCES)
    assert read._cache._cache_file._source_stamp == _stamp()  # numba still keeps it there


def test_whoever_waits_for_the_compiler_is_told_once(tmp_path: Path) -> None:
    code = "import logging; logging.basicConfig(level=logging.INFO); from bit_transformer.proof.kernels import plus; u = __import__('numpy').uint64; f = {}; exec('def g(): return 1', f); import numba; assert numba.njit(f['g'])() == 1; assert plus(u(1), u(2), u(7)) == 3"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]
    assert [done.returncode for done in said] == [0, 0], said
    assert [done.stderr.count("compiling loops") for done in said] == [1, 0], said


def _decorators(node: ast.AST) -> set[str]:
    return {ast.unparse(d).split(".")[-1] for d in node.decorator_list} if isinstance(node, ast.FunctionDef) else set()


def _in_python(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that are not inside of loops."""
    if not _decorators(node) & {"part", "inline", "compiled", "njit"}:
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _in_python(child)


def test_only_loops_call_parts_of_loops() -> None:
    """Python that calls a function without a door for Python ends the process."""
    files = [path for folder in ("bit_transformer", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    loops = re.compile("|".join(Path(name).stem for name in SOURCES))
    trees = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(text)
        for path in files
        if loops.search(text := path.read_text())
    }
    parts = {
        (module, node.name)
        for module in (f"bit_transformer.{name[:-3].replace('/', '.')}" for name in SOURCES)
        for node in trees[module].body
        if _decorators(node) & {"part", "inline"}
    }
    assert ("bit_transformer.experts.rich", "predict_bit") in parts
    for module, tree in trees.items():
        known = {name: (place, name) for place, name in parts if place == module}
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    known[name.asname or name.name] = (str(node.module), name.name)
                    modules[name.asname or name.name] = f"{node.module}.{name.name}"
        for node in _in_python(tree):
            if isinstance(node, ast.Name):
                used = known.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = (modules.get(node.value.id), node.attr)
            else:
                continue
            assert used not in parts, (module, node.lineno)
