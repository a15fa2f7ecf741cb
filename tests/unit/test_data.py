from __future__ import annotations

import http.server
import io
import itertools
import threading
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.data import sources
from bit_transformer.data.registry import CorpusFile, NamedCorpus
from bit_transformer.data.sources import (
    Corpus,
    Span,
    _mapped,
    bytes_corpus,
    find_files,
    named_file,
    split,
    stdlib_files,
    whole_files,
)
from bit_transformer.data.windows import BitWindows, CorpusWindows, permuted
from bit_transformer.errors import BitStreamError
from tests.conftest import TEXT, random_bits


def test_spans_read_like_one_array(tmp_path):
    parts = [bytes(range(i, i + n)) for i, n in ((0, 5), (50, 1), (100, 30))]
    files = []
    for i, part in enumerate(parts):
        files.append(tmp_path / f"{i}.bin")
        files[-1].write_bytes(part)
    whole = parts[0][1:] + parts[1] + parts[2]
    corpus = Corpus([Span(files[0], 1, 5), Span(files[1], 0, 1), Span(files[1], 0, 0), Span(files[2], 0, 30)])
    assert len(corpus) == len(whole)
    for offset in range(len(whole)):
        for length in (1, 3, 40):
            assert corpus.read(offset, length).tobytes() == whole[offset : offset + length]


def on_disk(tmp_path, data: bytes) -> Corpus:
    path = tmp_path / "data"
    path.write_bytes(data)
    return whole_files([path])


def read_all(corpus: Corpus) -> bytes:
    return corpus.read(0, len(corpus)).tobytes()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_bytes_in_memory_are_a_corpus_like_the_same_bytes_on_disk(tmp_path, size):
    data = np.random.default_rng(size).bytes(size)
    disk, memory = on_disk(tmp_path, data), bytes_corpus(data)
    assert len(memory) == size and read_all(memory) == data and memory.spans_at() == [(0, size)]
    for change in (
        lambda c: c.aligned(3),
        lambda c: c.part(size // 3, size // 2 + 1),
        lambda c: c.thinned(size // 2, 5),
        lambda c: c.without(c.thinned(size // 2, 5)),
        lambda c: c.part(1, size).aligned(4),
        lambda c: split(c, "position", 0.3, 2)[0],
        lambda c: split(c, "auto", 0.3)[1],
    ):
        mine, theirs = change(memory), change(disk)
        assert read_all(mine) == read_all(theirs)
        assert [(s.start, s.stop) for s in mine.spans] == [(s.start, s.stop) for s in theirs.spans]
        for offset in range(0, len(mine), 13):
            assert mine.read(offset, 9).tobytes() == theirs.read(offset, 9).tobytes()


def test_a_corpus_in_memory_makes_no_file_and_keeps_what_it_was_given(monkeypatch):
    monkeypatch.delattr(sources.tempfile, "NamedTemporaryFile")
    data = bytearray(b"as it was")
    corpus = bytes_corpus(data)
    data[:] = b"otherwise"
    assert read_all(corpus) == b"as it was"
    assert read_all(bytes_corpus(memoryview(b"view"))) == b"view"
    assert read_all(bytes_corpus(np.frombuffer(b"array", dtype=np.uint8))) == b"array"
    assert len(bytes_corpus(b"")) == 0 and not bytes_corpus(b"").spans
    with pytest.raises(ValueError, match="read-only"):
        corpus.read(0, 3)[0] = 1


def test_a_digest_of_bytes_in_memory_is_of_what_they_are():
    one = bytes_corpus(TEXT)
    assert one.digest() == bytes_corpus(bytearray(TEXT)).digest()
    others = [one.part(0, 10), one.part(1, 11), bytes_corpus(TEXT[:-1]), bytes_corpus(TEXT[:-1] + b"!")]
    assert len({c.digest() for c in (one, *others)}) == 5


def test_corpora_of_files_and_of_memory_join(tmp_path):
    disk, memory = on_disk(tmp_path, b"on disk, "), bytes_corpus(b"in memory")
    both = Corpus([*disk.spans, *memory.spans])
    assert read_all(both) == b"on disk, in memory" and both.read(7, 5).tobytes() == b", in "
    assert read_all(both.without(memory)) == b"on disk, "
    train, held = split(both, "file", 0.5)
    assert sorted([read_all(train), read_all(held)]) == [b"in memory", b"on disk, "]


def test_thinned_pieces_start_where_patches_and_bytes_meet():
    thin = bytes_corpus(bytes(3000)).thinned(400, 100, align=3)
    assert len(thin.spans) >= 8 and len(thin) <= 400
    assert all(s.start % 3 == 0 and len(s) % 3 == 0 for s in thin.spans)


def test_a_file_named_twice_is_one_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(b"{}")
    assert len(find_files([str(tmp_path / "a"), str(tmp_path / "run" / ".." / "a")])) == 1
    assert find_files([str(tmp_path)], leave_out=[tmp_path / "run"]) == [tmp_path / "a"]
    with pytest.raises(BitStreamError, match="corpus ''"):
        find_files([""])


def test_thinned_is_spread_disjoint_and_of_the_asked_size():
    corpus = bytes_corpus(bytes(range(256)) * 100)
    thin = corpus.thinned(1000, 100)
    assert len(thin) == 1000 and len(thin.spans) == 10
    spans = sorted((s.start, s.stop) for s in thin.spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[0][0] == 0 and spans[-1][1] == len(corpus)
    assert corpus.thinned(10**9, 100) is corpus


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_the_order_is_a_permutation_and_depends_on_its_key(size):
    orders = [permuted(np.arange(size), size, key=key).tolist() for key in (1, 2, 2**63 + 5)]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size >= 64:
        assert orders[0] != orders[1] != orders[2]
        assert permuted(np.arange(10, 20), size, key=1).tolist() == orders[0][10:20]


def test_an_epoch_shows_every_window_once_and_the_next_cuts_elsewhere():
    corpus = bytes_corpus(np.random.default_rng(0).bytes(16 * 50))
    windows = CorpusWindows(corpus, 16, seed=3)
    epochs = [Counter(row.numpy().tobytes() for row in windows.draw(len(windows)).bits_BT) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(windows) and set(epoch.values()) == {1}
    assert epochs[0].keys() != epochs[1].keys()


def test_a_sampler_goes_on_where_it_stood():
    corpus = bytes_corpus(TEXT)
    first = CorpusWindows(corpus, 32, seed=5)
    for _ in range(40):
        first.draw(7)
    second = CorpusWindows(corpus, 32, seed=5)
    second.load_state_dict(first.state_dict(), first.tensors())
    for _ in range(200):
        assert torch.equal(first.draw(7).bits_BT, second.draw(7).bits_BT)


def test_windows_start_where_patches_and_bytes_meet():
    corpus = bytes_corpus(bytes(range(200)))
    windows = CorpusWindows(corpus, 6, align=3)
    for row in windows.draw(60).bits_BT:
        assert np.packbits(row.numpy())[0] % 3 == 0


def test_bit_windows_come_as_they_are():
    bits_NT = random_bits(5, 16)
    windows = BitWindows(bits_NT, seed=1)
    drawn = windows.draw(5).bits_BT
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, bits_NT.tolist()))
    assert windows.window_bytes == 2


def test_less_than_a_window_is_refused():
    with pytest.raises(BitStreamError, match="one window of 32"):
        CorpusWindows(bytes_corpus(b"short"), 32)


@pytest.mark.parametrize(
    ("size", "holdout"), [(1_000_000, 0.1), (300_000, 0.25), (9, 0.5), (5_000, 0.1), (70_001, 0.1)]
)
def test_split_by_blocks_spreads_what_is_held_out(size, holdout):
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    train, held = split(bytes_corpus(data), "blocks", holdout)
    spans = sorted([*train.spans, *held.spans], key=lambda span: span.start)
    assert spans[0].start == 0 and spans[-1].stop == size
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
    assert abs(len(held) - holdout * size) <= max(1, 4096 if size > 100_000 else 1) + holdout
    if size >= 300_000:
        assert len(held.spans) >= 4 and held.spans[0].start < size / 2


def test_split_by_position_holds_out_the_last_bytes(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(100))
    train, held = split([file], "position", 0.1)
    assert [(s.start, s.stop) for s in (*train.spans, *held.spans)] == [(0, 90), (90, 100)]


def test_split_by_file_is_disjoint_and_does_not_depend_on_the_order(tmp_path):
    files = [tmp_path / f"{i}.txt" for i in range(20)]
    for file in files:
        file.write_bytes(b"x" * 10)
    train, held = split(files, "auto", 0.1)
    assert {s.path for s in train.spans} | {s.path for s in held.spans} == set(files)
    assert len(held.spans) == 2
    assert {s.path for s in split(files[::-1], "file", 0.1)[1].spans} == {s.path for s in held.spans}
    with pytest.raises(BitStreamError, match="two are needed"):
        split(files[:1], "file", 0.1)


def test_files_folders_globs_and_standard_input(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").write_bytes(b"no")
    for name in ("b.txt", "a.txt", "sub/c.bin"):
        (tmp_path / name).write_bytes(name.encode())
    names = [p.name for p in find_files([str(tmp_path)])]
    assert names == ["a.txt", "b.txt", "c.bin"]
    assert [p.name for p in find_files([str(tmp_path / "*.txt")])] == ["a.txt", "b.txt"]
    (piped,) = find_files(["-"], stdin=io.BytesIO(b"streamed"))
    assert piped.read_bytes() == b"streamed"


@pytest.mark.parametrize("name", ["nothing-here", "no/such/*.txt"])
def test_a_corpus_that_is_not_there_is_named(name):
    with pytest.raises(BitStreamError, match="stdlib, tinyshakespeare"):
        find_files([name])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stdlb", "stdlib"),
        ("tinyshakespear", "tinyshakespeare"),
        ("Dickens", "dickens"),
        ("txet.txt", "text.txt"),
        ("TEXT.TXT", "text.txt"),
        ("dta/sub/a.bin", "data/sub/a.bin"),
        ("data/sbu/a.bin", "data/sub/a.bin"),
        ("data/sub/b.bin", "data/sub/a.bin"),
        ("dat", "data"),
    ],
)
def test_a_name_that_is_nearly_one_that_is_there_is_answered_with_it(tmp_path, monkeypatch, name, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for file in ("text.txt", "data/sub/a.bin"):
        (tmp_path / file).write_bytes(b"x")
    assert find_error(name).endswith(f"Did you mean {meant!r}?")
    if (tmp_path / meant).exists():
        assert find_error(str(tmp_path / name)).endswith(f"Did you mean {str(tmp_path / meant)!r}?")
    else:  # a corpus by name, which stands in no folder
        assert "Did you mean" not in find_error(str(tmp_path / name))


def find_error(name: str) -> str:
    with pytest.raises(BitStreamError) as caught:
        find_files([name])
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_path_below_one_that_is_nearly_right_is_only_offered_where_it_is_there(tmp_path):
    (tmp_path / "data").mkdir()
    assert "Did you mean" not in find_error(str(tmp_path / "dta" / "a.bin"))
    assert "Did you mean" not in find_error(str(tmp_path / "*.bim"))
    assert "Did you mean" not in find_error(str(tmp_path / "data"))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("empty", "folder/empty"):
        (tmp_path / name).touch()
    with pytest.raises(BitStreamError, match="empty file"):
        find_files([str(tmp_path / "folder")])
    with pytest.raises(BitStreamError, match="empty file"):
        find_files([str(tmp_path / "empty")])


def test_the_standard_library_is_a_corpus():
    files = stdlib_files()
    assert len(files) > 300
    assert not [f for f in files if "test" in f.parts or "site-packages" in f.parts]
    train, held = split(files, "auto", 0.1)
    assert len(train) > 5_000_000 and len(held) > 100_000


def test_a_named_corpus_comes_from_the_data_folder_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("BTLM_DATA_DIR", str(tmp_path))
    right = CorpusFile("file.txt", f"sha256:{sha256(b'right').hexdigest()}")
    good = NamedCorpus((right,), "http://127.0.0.1:9/none", "a test")
    monkeypatch.setitem(sources.REGISTRY, "named", good)
    (tmp_path / "file.txt").write_bytes(b"right")
    assert find_files(["named"]) == [tmp_path / "file.txt"]
    (tmp_path / "file.txt").write_bytes(b"wrong!")
    with pytest.raises(BitStreamError) as refused:
        named_file("named")
    sums = [sha256(data).hexdigest() for data in (b"wrong!", b"right")]
    assert f"got SHA-256 {sums[0]}; {sums[1]} of corpus 'named' is needed" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.fixture
def web(tmp_path):
    """A web server on this machine that offers a file and a zip archive of it."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "plain.txt").write_bytes(TEXT)
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("plain.txt", TEXT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["plain.txt", "packed.zip"])
def test_a_named_corpus_is_downloaded_checked_and_kept(web, tmp_path, monkeypatch, name):
    pytest.importorskip("pooch")
    folder, address = web
    packed = f"sha256:{sha256((folder / name).read_bytes()).hexdigest()}" if name.endswith("zip") else None
    plain = CorpusFile("plain.txt", f"sha256:{sha256(TEXT).hexdigest()}")
    corpus = NamedCorpus((plain,), f"{address}/{name}", "a test", archive=packed)
    monkeypatch.setitem(sources.REGISTRY, "named", corpus)
    got = named_file("named", cache=tmp_path / "cache")
    assert got.read_bytes() == TEXT
    (folder / name).unlink()
    assert named_file("named", cache=tmp_path / "cache") == got
    with pytest.raises(BitStreamError, match="BTLM_DATA_DIR"):
        named_file("named", cache=tmp_path / "other")


def test_a_part_is_taken_out_of_a_corpus(tmp_path):
    for name, size in (("a", 900), ("b", 50), ("c", 3000)):
        (tmp_path / name).write_bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes())
    corpus = whole_files(tmp_path / name for name in "abc")
    for align, limit in ((1, 300), (9, 300), (1, 3950)):
        even = corpus.aligned(align)
        part = even.thinned(limit, 64, align)
        rest = even.without(part)
        assert len(part) + len(rest) == len(even)
        where = [{(s.path, at) for s in c.spans for at in range(s.start, s.stop)} for c in (even, part, rest)]
        assert where[1] | where[2] == where[0] and not where[1] & where[2]
        assert all(s.start % align == 0 and len(s) % align == 0 for s in rest.spans)


def test_a_file_that_was_replaced_and_one_of_the_same_name_elsewhere_are_read_as_they_are(
    tmp_path, monkeypatch
) -> None:
    for folder, data in (("a", b"one"), ("b", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(data)
        monkeypatch.chdir(tmp_path / folder)
        assert whole_files([Path("file")]).read(0, 9).tobytes() == data
    kept = whole_files([Path("file")])
    kept.read(0, 9)
    unread = whole_files([Path("file")])
    _mapped.cache_clear()
    (tmp_path / "new").write_bytes(b"thr")
    (tmp_path / "new").replace("file")
    assert whole_files([Path("file")]).read(0, 9).tobytes() == b"thr"
    with pytest.raises(BitStreamError, match="was changed or removed"):
        unread.read(0, 9)
