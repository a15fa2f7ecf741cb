"""Named corpora: their checksums, parts and listing; data sets of the hub's library as corpora."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bit_transformer.data import registry
from bit_transformer.data.hub_sets import HubSet
from bit_transformer.data.registry import PARTS, REGISTRY, CorpusFile, NamedCorpus, Part, named_files
from bit_transformer.data.sources import Corpus, find_files, is_corpus, standard_parts, whole_files
from bit_transformer.errors import BitStreamError, BitTransformerError, ConfigError, HubError
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace

QUICK = ("--preset", "1", "--no-experts", "--set", "model.max_seq_len=256", "--steps", 2, "--batch-size", 2)


def sum_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bit-transformer"


def refusal(call_: Callable[..., object], *args: object, **fields: object) -> str:
    with pytest.raises(BitTransformerError) as caught:
        call_(*args, **fields)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- the entries ----


def test_every_entry_is_complete_and_its_checksums_are_of_the_length_of_their_kind():
    lengths = {"sha256": 64, "sha1": 40}
    for name, corpus in REGISTRY.items():
        assert corpus.licence and corpus.source and corpus.url and corpus.about and corpus.files, name
        for checksum in (*(file.checksum for file in corpus.files), *filter(None, [corpus.archive])):
            kind, _, digits = checksum.partition(":")
            assert re.fullmatch(r"[0-9a-f]+", digits) and len(digits) == lengths[kind], name
        assert corpus.parts.keys() in (set(), set(PARTS)), name
        for part in corpus.parts:
            size = corpus.part_size(part)
            assert size is None or 0 < size <= 100_000_000
    assert sum(corpus.size for corpus in REGISTRY.values() if "silesia" in corpus.url) == 211_938_580
    assert [REGISTRY["text8"].part_size(part) for part in PARTS] == [90_000_000, 5_000_000, 5_000_000]
    for name in ("enwik8", "text8"):  # nothing is in two parts, nothing is left out
        spans = sorted((part.start, part.stop) for part in REGISTRY[name].parts.values())
        assert spans == [(0, 90_000_000), (90_000_000, 95_000_000), (95_000_000, 100_000_000)]
    two, large = (REGISTRY[f"wikitext-{size}"] for size in ("2", "103"))
    assert two.files[1].checksum == large.files[1].checksum and two.files[2].checksum == large.files[2].checksum


@pytest.mark.skipif("BTLM_TEST_DATA_DIR" not in os.environ, reason="there is no data folder")
def test_the_corpora_of_the_data_folder_have_the_sizes_and_sums_of_their_entries(monkeypatch):
    monkeypatch.setenv("BTLM_DATA_DIR", os.environ["BTLM_TEST_DATA_DIR"])
    found = [
        corpus for corpus in call("corpora", {"check": True}, Workspace()).corpora if corpus.place == "data folder"
    ]
    assert found
    for corpus in found:
        assert corpus.checked and corpus.bytes == sum(os.path.getsize(file.path) for file in corpus.files), corpus


# ---- a corpus with parts, of one file and of three ----


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small corpora that have standard parts, entered into the registry."""
    folder = tmp_path / "data"
    (folder / "three").mkdir(parents=True)
    monkeypatch.setenv("BTLM_DATA_DIR", str(folder))
    random = np.random.default_rng(0)
    whole = random.integers(97, 123, 10_000, dtype=np.uint8).tobytes()
    (folder / "one").write_bytes(whole)
    cuts = dict(zip(PARTS, (Part(0, 0, 8000), Part(0, 8000, 9000), Part(0, 9000, 10_000)), strict=True))
    one = NamedCorpus((CorpusFile("one", sum_of(whole), 10_000),), "http://127.0.0.1:9/one", "a test", parts=cuts)
    files = []
    for part, size in zip(PARTS, (5000, 700, 600), strict=True):
        data = part.encode() + random.bytes(size)
        (folder / "three" / f"{part}.raw").write_bytes(data)
        files.append(CorpusFile(f"three/{part}.raw", sum_of(data, "sha1" if part == "train" else "sha256"), len(data)))
    three = NamedCorpus(
        tuple(files),
        "http://127.0.0.1:9/three.zip",
        "a test",
        archive="sha256:" + 64 * "0",
        parts={part: Part(index) for index, part in enumerate(PARTS)},
    )
    monkeypatch.setitem(REGISTRY, "one", one)
    monkeypatch.setitem(REGISTRY, "three", three)
    return folder


def read_all(corpus: Corpus) -> bytes:
    return corpus.read(0, len(corpus)).tobytes()


def test_standard_parts_are_those_bytes_and_join_part_by_part(data_folder):
    whole = (data_folder / "one").read_bytes()
    files = [(data_folder / "three" / f"{part}.raw").read_bytes() for part in PARTS]
    one, three = standard_parts(["one"]), standard_parts(["three"])
    assert [read_all(part) for part in one] == [whole[:8000], whole[8000:9000], whole[9000:]]
    assert [read_all(part) for part in three] == files
    both = standard_parts(["one", "three", "one"])  # named twice, it is one corpus
    assert read_all(both.test) == whole[9000:] + files[2]


def test_a_part_can_be_named_by_itself(data_folder, own_cache):
    (file,) = find_files(["three:test"])
    assert file == data_folder / "three" / "test.raw"
    (cut,) = find_files(["one:validation"])
    assert cut.read_bytes() == (data_folder / "one").read_bytes()[8000:9000] and own_cache in cut.parents
    before = cut.stat().st_mtime_ns
    assert find_files(["one:validation"]) == [cut] and cut.stat().st_mtime_ns == before
    cut.write_bytes(bytes(1000))  # of the right size, and wrong
    assert find_files(["one:validation"])[0].read_bytes() == (data_folder / "one").read_bytes()[8000:9000]
    assert is_corpus("one:test") and is_corpus("three") and not is_corpus("one:best") and not is_corpus("stdlib:test")
    assert len(find_files(["three"])) == 3
    refusal(find_files, ["one:best"])


def test_a_corpus_without_standard_parts_is_refused_before_anything_is_written(btlm, text_file, tmp_path):
    for corpus in (text_file, "tinyshakespeare"):
        done = btlm("train", corpus, *QUICK, "--set", "data.split=standard", "--out", "runs/a")
        assert done.returncode == 2 and not (tmp_path / "runs").exists()
        assert f"'{corpus}', which has no standard parts; enwik8, text8, wikitext-2, wikitext-103" in done.stderr
        assert done.stderr.endswith("Try --set data.split=auto\n") and len(done.stderr.splitlines()) == 1


def test_a_training_on_standard_parts_holds_out_the_test_part_and_is_resumed(btlm, data_folder, tmp_path):
    name = "three"
    command = ["train", name, *QUICK, "--set", "data.split=standard", "--out", "runs/a", "--json"]
    done = btlm(*command)
    assert done.returncode == 0, done.stderr
    parts = standard_parts([name])
    settings = json.loads((tmp_path / "runs" / "a" / "config.json").read_text())["data"]
    assert settings["split"] == "standard"
    assert settings["train_bytes"] == len(parts.train) and settings["held_out_bytes"] == len(parts.test)
    assert settings["validation_bytes"] == len(parts.validation) and settings["digest"] == parts.train.digest()
    assert json.loads(done.stdout)["comparison"]["bytes"] == len(parts.test)
    more = btlm("train", "--resume", "--out", "runs/a", "--steps", 4, "--json")
    assert more.returncode == 0 and json.loads(more.stdout)["steps"] == 4, more.stderr
    held = Workspace(tmp_path / "runs" / "runs.sqlite")
    from bit_transformer.service.training import held_out_part

    assert read_all(held_out_part(tmp_path / "runs" / "a", held)) == read_all(parts.test)


# ---- checksums ----


def test_a_wrong_file_is_refused_with_both_sums_and_listed_as_wrong(btlm, data_folder):
    path = data_folder / "three" / "train.raw"
    path.write_bytes(b"other")
    got, wanted = sum_of(b"other", "sha1")[5:], REGISTRY["three"].files[0].checksum[5:]
    said = (
        f"{path}: got SHA-1 {got}; {wanted} of corpus 'three' is needed. Try removing the file, then it is downloaded"
    )
    assert refusal(named_files, "three") == said
    done = btlm("train", "three", *QUICK, "--out", "runs/a")
    assert done.returncode == 2 and done.stderr == f"btlm: {said}\n"
    listed = btlm("corpora", "--check", "--json")
    assert listed.returncode == 2
    entries = {corpus["name"]: corpus for corpus in json.loads(listed.stdout)["corpora"]}
    assert entries["three"]["problem"] == said and entries["three"]["checked"] is False
    assert entries["one"]["checked"] is True and not entries["one"]["problem"]
    shown = btlm("corpora", "--check")
    assert "WRONG" in shown.stdout and wanted in shown.stdout


def test_a_download_with_a_wrong_checksum_is_refused_with_both_sums_and_mirrors_are_tried(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    source = tmp_path / "source"
    source.mkdir()
    data = {"three/a": b"first", "three/b": b"second"}
    with zipfile.ZipFile(source / "good.zip", "w") as archive:
        for name, content in data.items():
            archive.writestr(name, content)
    (source / "bad.zip").write_bytes(b"not it")
    files = tuple(CorpusFile(name, sum_of(content)) for name, content in data.items())
    archive_sum = sum_of((source / "good.zip").read_bytes())
    good, bad = ((source / f"{name}.zip").as_uri() for name in ("good", "bad"))

    def copied(url: str, output: str, _: object, check_only: bool = False) -> None:  # a transport, in place of HTTP
        Path(output).write_bytes(Path(url.removeprefix("file://")).read_bytes())

    import pooch

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: copied)
    monkeypatch.setitem(REGISTRY, "three", NamedCorpus(files, bad, "a test", archive=archive_sum))
    said = refusal(named_files, "three", cache=tmp_path / "a")
    assert sum_of(b"not it")[7:] in said and archive_sum in said and "BTLM_DATA_DIR" in said
    monkeypatch.setitem(REGISTRY, "three", NamedCorpus(files, bad, "a test", archive=archive_sum, mirrors=(good,)))
    found = named_files("three", cache=tmp_path / "b")
    assert [path.read_bytes() for path in found] == list(data.values())
    found[1].write_bytes(b"damaged")  # in the cache: it is unpacked again
    said = refusal(named_files, "three", cache=tmp_path / "b")
    assert sum_of(b"damaged")[7:] in said and files[1].checksum[7:] in said and not found[1].exists()
    assert [path.read_bytes() for path in named_files("three", cache=tmp_path / "b")] == list(data.values())


# ---- the listing ----


def test_the_listing_says_what_there_is_and_downloads_nothing(btlm, data_folder, own_cache):
    found = json.loads(btlm("corpora", "--json").stdout)
    entries = {corpus["name"]: corpus for corpus in found["corpora"]}
    assert entries.keys() == {"stdlib", *REGISTRY}
    assert found["data_folder"] == str(data_folder) and found["cache"] == str(own_cache) and not own_cache.exists()
    assert all(entry["licence"] for entry in entries.values())
    assert entries["one"]["place"] == "data folder" and entries["one"]["checked"] is None
    assert entries["one"]["parts"] == {"train": 8000, "validation": 1000, "test": 1000}
    assert entries["enwik8"]["place"] == "download" and entries["enwik8"]["bytes"] == 100_000_000
    assert entries["enwik8"]["files"][0]["checksum"] == REGISTRY["enwik8"].files[0].checksum
    assert entries["stdlib"]["place"] == "here" and entries["stdlib"]["bytes"] > 5_000_000
    assert entries["wikitext-103"]["bytes"] is None and entries["wikitext-103"]["parts"]["test"] == 1_290_590
    shown = btlm("corpora").stdout
    assert all(name in shown for name in REGISTRY) and "hf:NAME" in shown and "CC BY-SA" in shown
    (data_folder / "three" / "test.raw").unlink()
    again = {corpus.name: corpus for corpus in call("corpora", {}, Workspace()).corpora}
    assert again["three"].place == "download" and again["three"].files[0].path and not again["three"].files[2].path


# ---- data sets of the hub's library ----


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:a/b", ("a/b", None, None, None)),
        ("datasets:a/b:c", ("a/b", "c", None, None)),
        ("hf:a/b::test", ("a/b", None, "test", None)),
        ("hf:a/b:c:train[:10%]:body", ("a/b", "c", "train[:10%]", "body")),
        ("hf:a:::body", ("a", None, None, "body")),
    ],
)
def test_a_name_says_config_split_and_column(name, parts):
    assert HubSet.of(name) == HubSet(*parts)


def test_a_name_that_is_not_one_is_refused():
    for name in ("hf:", "hf::a", "hf:a:b:c:d:e"):
        assert "hf:NAME[:CONFIG]" in refusal(HubSet.of, name)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path / "library"))
    return found


def test_a_local_folder_becomes_a_plain_file_once_and_needs_no_library_then(library, own_cache, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, text in (("train", "one\n\nthree ä\n"), ("validation", "v\n"), ("test", "t\n")):
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    (file,) = find_files([f"hf:{folder}"])
    assert file.read_bytes() == "one\n\nthree ä\n".encode() and own_cache in file.parents
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() and record["split"] == "train"
    parts = standard_parts([f"hf:{folder}"])
    assert [read_all(part) for part in parts] == [file.read_bytes(), b"v\n", b"t\n"]
    with monkeypatch.context() as patch:
        patch.delattr(library, "load_dataset")
        assert find_files([f"datasets:{folder}"]) == [file]
    file.write_bytes(b"changed")
    said = refusal(find_files, [f"hf:{folder}"])
    assert hashlib.sha256(b"changed").hexdigest() in said and record["sha256"] in said
    (folder / "train.txt").write_text("another\n")  # another data set, so another file
    (fresh,) = find_files([f"hf:{folder}"])
    assert fresh != file and fresh.read_bytes() == b"another\n"


def test_saved_data_sets_are_read_by_split_and_column(library, tmp_path):
    rows = library.Dataset.from_dict({"body": ["a", None, "c\n"], "other": ["x", "y", "z"], "number": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    library.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "many"))
    (file,) = find_files([f"hf:{tmp_path / 'one'}:::body"])
    assert file.read_bytes() == b"a\n\nc\n"
    assert "one of text is needed: body, other" in refusal(find_files, [f"hf:{tmp_path / 'one'}"])
    assert "column 'number'" in refusal(find_files, [f"hf:{tmp_path / 'one'}:::number"])
    (file,) = find_files([f"hf:{tmp_path / 'many'}::test:other"])
    assert file.read_bytes() == b"x\ny\nz\n"
    assert "its splits are test" in refusal(find_files, [f"hf:{tmp_path / 'many'}:::other"])


def test_what_cannot_be_had_from_the_library_or_the_hub_is_one_line(library, own_cache, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    assert "Unknown split" in refusal(find_files, [f"hf:{folder}::nope"])
    assert "not found" in refusal(find_files, [f"hf:{folder}:nope"])
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        HubError, match=r"hf:no/such: http://127.0.0.1:9 cannot be reached \(.*\). Try again with a network"
    ):
        find_files(["hf:no/such"])
    assert not list((own_cache / "hub-sets").glob("*")), "nothing is left of what failed"
    with pytest.raises(ConfigError, match="names the split 'test'"):
        standard_parts([f"hf:{folder}::test"])
    with pytest.raises(BitStreamError, match="Unknown split"):
        standard_parts([f"hf:{folder}"])


def test_a_data_set_can_be_trained_on_again(library, tmp_path):
    """What a resumed training compares: the digest does not change while the data set does not."""
    library.Dataset.from_dict({"text": ["a row", "another"]}).save_to_disk(str(tmp_path / "set"))
    first, second = (whole_files(find_files([f"hf:{tmp_path / 'set'}"])).digest() for _ in range(2))
    assert first == second


def test_half_a_file_is_never_left_in_the_cache(tmp_path):
    def pieces():
        yield b"half"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        registry.write_pieces(tmp_path / "new" / "file", pieces())
    assert not list((tmp_path / "new").iterdir())
