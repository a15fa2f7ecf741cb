"""Corpora by name: public files for comparing results, with their licences, checksums and standard parts.

A file is taken from the folder that `BTLM_DATA_DIR` names, from the user's cache, or downloaded into that. Its checksum is always checked.
The checksums are those that the authors or several independent projects have published.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from bit_transformer.errors import BitStreamError, MissingExtra
from bit_transformer.extras import require

DATA_DIR_VARIABLE = "BTLM_DATA_DIR"
PartName = Literal["train", "validation", "test"]
PARTS: tuple[PartName, ...] = get_args(PartName)
MB = 1_000_000


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus.

    Attributes:
        name: in a data folder, in the cache, and in the archive if the corpus is downloaded as one.
        checksum: `ALGORITHM:HEX`, of the file itself, unpacked. SHA-256; SHA-1 where nothing else is published.
        size: bytes; None if not known before the download.
    """

    name: str
    checksum: str
    size: int | None = None


@dataclass(frozen=True)
class Part:
    """A standard part of a corpus: bytes [start, stop) of one of its files.

    Attributes:
        file: index of the file.
        stop: None: to the end.
    """

    file: int = 0
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class NamedCorpus:
    """A public corpus for comparing results.

    Attributes:
        url: where to download it.
        about: one line.
        licence: of the text, as its authors say.
        source: a page about it, or who made it.
        archive: checksum of the download, if that is a zip archive with the files.
        mirrors: other addresses of the same bytes, tried when the first fails.
        parts: standard parts by name; empty if there are none.
    """

    files: tuple[CorpusFile, ...]
    url: str
    about: str
    licence: str = "unknown"
    source: str = ""
    archive: str | None = None
    mirrors: tuple[str, ...] = ()
    parts: Mapping[PartName, Part] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if one is not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def part_size(self, name: PartName) -> int | None:
        """Bytes of a standard part; None if not known."""
        part = self.parts[name]
        stop = self.files[part.file].size if part.stop is None else part.stop
        return None if stop is None else stop - part.start


_WIKIPEDIA = "CC BY-SA 3.0 and GFDL (text of Wikipedia)"
_MAHONEY = "http://mattmahoney.net/dc/textdata.html"
_FIRST_90_MB: Mapping[PartName, Part] = MappingProxyType(
    {
        "train": Part(0, 0, 90 * MB),
        "validation": Part(0, 90 * MB, 95 * MB),
        "test": Part(0, 95 * MB, 100 * MB),
    }
)
_SILESIA = "http://sun.aei.polsl.pl/~sdeor/corpus/silesia.zip"
_SILESIA_ARCHIVE = "sha256:0626e25f45c0ffb5dc801f13b7c82a3b75743ba07e3a71835a41e3d9f63c77af"
_VALID = CorpusFile("", "sha256:4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7", 1_146_846)
_TEST = CorpusFile("", "sha256:173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08", 1_290_590)


def _silesia(name: str, sha256: str, size: int, about: str, licence: str) -> NamedCorpus:
    return NamedCorpus(
        (CorpusFile(name, f"sha256:{sha256}", size),),
        _SILESIA,
        f"Silesia corpus: {about}",
        licence,
        "http://sun.aei.polsl.pl/~sdeor/index.php?page=silesia (Deorowicz 2003)",
        _SILESIA_ARCHIVE,
    )


def _wikitext(size: str, train: str, bytes_: int | None, archive: str, mirror: str, about: str) -> NamedCorpus:
    """Validation and test part are the same files in both WikiTexts."""
    folder = f"wikitext-{size}-raw"
    return NamedCorpus(
        (
            CorpusFile(f"{folder}/wiki.train.raw", train, bytes_),
            CorpusFile(f"{folder}/wiki.valid.raw", _VALID.checksum, _VALID.size),
            CorpusFile(f"{folder}/wiki.test.raw", _TEST.checksum, _TEST.size),
        ),
        f"https://wikitext.smerity.com/wikitext-{size}-raw-v1.zip",
        about,
        _WIKIPEDIA,
        "https://arxiv.org/abs/1609.07843 (Merity et al. 2016)",
        archive,
        (mirror, f"https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-{size}-raw-v1.zip"),
        MappingProxyType({"train": Part(0), "validation": Part(1), "test": Part(2)}),
    )


_UNSTATED = "not stated by the corpus"
REGISTRY: dict[str, NamedCorpus] = {
    "tinyshakespeare": NamedCorpus(
        (
            CorpusFile(
                "tinyshakespeare.txt",
                "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                1_115_394,
            ),
        ),
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "Shakespeare's plays (Karpathy 2015)",
        "public domain (text of Shakespeare)",
        "https://github.com/karpathy/char-rnn",
    ),
    "enwik8": NamedCorpus(
        (CorpusFile("enwik8", "sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8", 100 * MB),),
        "http://mattmahoney.net/dc/enwik8.zip",
        "the first 100 MB of English Wikipedia of 2006, as XML (Mahoney)",
        _WIKIPEDIA,
        _MAHONEY,
        "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        parts=_FIRST_90_MB,
    ),
    "text8": NamedCorpus(
        (CorpusFile("text8", "sha256:6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7", 100 * MB),),
        "http://mattmahoney.net/dc/text8.zip",
        "English Wikipedia of 2006 as words of the letters a to z, 100 MB (Mahoney)",
        _WIKIPEDIA,
        _MAHONEY,
        "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        parts=_FIRST_90_MB,
    ),
    "wikitext-2": _wikitext(
        "2",
        "sha256:6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
        10_940_747,
        "sha256:ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip",
        "good articles of English Wikipedia, raw text, 2 million words",
    ),
    # Of the unpacked training file only a SHA-1 is published (by GluonNLP). The archive it comes from has a SHA-256.
    "wikitext-103": _wikitext(
        "103",
        "sha1:3d06627c15e834408cfee91293f862c11c1cc9ef",
        None,
        "sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/3555105b17ae31cc619a136fac72dbe2865c3738/wikitext-103-raw-v1.zip",
        "good articles of English Wikipedia, raw text, 103 million words",
    ),
    "dickens": _silesia(
        "dickens", "b24c37886142e11d0ee687db6ab06f936207aa7f2ea1fd1d9a36763c7a507e6a", 10_192_446, "English novels",
        "public domain (text of Dickens)",
    ),
    "mozilla": _silesia(
        "mozilla", "657fc3764b0c75ac9de9623125705831ebbfbe08fed248df73bc2dc66e2a963b", 51_220_480, "executables, tar", _UNSTATED
    ),
    "mr": _silesia(
        "mr", "68637ed52e3e4860174ed2dc0840ac77d5f1a60abbcb13770d5754e3774d53e6", 9_970_564, "a 3-D MRI image", _UNSTATED
    ),
    "nci": _silesia(
        "nci", "fc63a31770947b8c2062d3b19ca94c00485a232bb91b502021948fee983e1635", 33_553_445, "chemical structures", _UNSTATED
    ),
    "ooffice": _silesia(
        "ooffice", "e7ee013880d34dd5208283d0d3d91b07f442e067454276095ded14f322a656eb", 6_152_192, "a Windows DLL", _UNSTATED
    ),
    "osdb": _silesia(
        "osdb", "60f027179302ca3ad87c58ac90b6be72ec23588aaa7a3b7fe8ecc0f11def3fa3", 10_085_684, "a MySQL table", _UNSTATED
    ),
    "reymont": _silesia(
        "reymont", "0eac0114a3dfe6e2ee1f345a0f79d653cb26c3bc9f0ed79238af4933422b7578", 6_627_202, "a Polish novel, PDF",
        "public domain (text of Reymont)",
    ),
    "samba": _silesia(
        "samba", "93ba07bc44d8267789c1d911992f40b089ffa2140b4a160fac11ccae9a40e7b2", 21_606_400, "source code, tar", _UNSTATED
    ),
    "sao": _silesia(
        "sao", "c2d0ea2cc59d4c21b7fe43a71499342a00cbe530a1d5548770e91ecd6214adcc", 7_251_944, "a star catalogue", _UNSTATED
    ),
    "webster": _silesia(
        "webster", "6a68f69b26daf09f9dd84f7470368553194a0b294fcfa80f1604efb11143a383", 41_458_703, "a dictionary, HTML",
        "public domain (Webster of 1913)",
    ),
    "x-ray": _silesia(
        "x-ray", "7de9fce1405dc44ae5e6813ed21cd5751e761bd4265655a005d39b9685d1c9ad", 8_474_240, "a 12-bit X-ray image", _UNSTATED
    ),
    "xml": _silesia(
        "xml", "0e82e54e695c1938e4193448022543845b33020c8be6bf3bf3ead2224903e08c", 5_345_280, "XML files, tar", _UNSTATED
    ),
}  # fmt: skip


# ---- where files are ----


def corpus_cache() -> Path:
    """The folder that corpora are downloaded into."""
    with contextlib.suppress(MissingExtra):  # what downloads brings it; without, nothing was downloaded
        dirs = require("platformdirs", extra="download", purpose="the cache of corpora")
        return Path(dirs.user_cache_dir("bit-transformer"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bit-transformer"


def found_file(file: CorpusFile, cache: Path | None = None) -> tuple[Path, bool] | None:
    """Where a file of a corpus is, unchecked, and whether that is the data folder; None if it must be downloaded."""
    folder = os.environ.get(DATA_DIR_VARIABLE)
    if folder and (local := Path(folder) / file.name).is_file():
        return local, True
    kept = (cache or corpus_cache()) / file.name
    return (kept, False) if kept.is_file() else None


def named_files(name: str, *, cache: Path | None = None) -> list[Path]:
    """The files of a named corpus: from `BTLM_DATA_DIR`, from the cache, or downloaded. Their checksums are checked.

    Raises:
        BitStreamError: a file in the data folder has another checksum, or the download failed.
    """
    corpus = REGISTRY[name]
    return [_found_or_downloaded(name, corpus, file, cache) for file in corpus.files]


def named_file(name: str, *, cache: Path | None = None) -> Path:
    """The file of a named corpus that has only one; else as `named_files`.

    Raises:
        BitStreamError: as `named_files`.
    """
    (path,) = named_files(name, cache=cache)
    return path


def check_file(path: Path, checksum: str, whose: str, advice: str) -> None:
    """Refuse a file with another checksum.

    Args:
        checksum: `ALGORITHM:HEX`.
        whose: what the checksum is of, for the error.

    Raises:
        BitStreamError: it differs. The message has both sums.
    """
    algorithm, _, wanted = checksum.partition(":")
    got = file_sum(path, algorithm)
    if got != wanted:
        shown = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}[algorithm]
        raise BitStreamError(f"{path}: got {shown} {got}; {wanted} of {whose} is needed. Try {advice}")


def file_sum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file in hexadecimal. It is kept in memory until the file changes."""
    stat = path.stat()
    return _file_sum(path.absolute(), algorithm, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _file_sum(path: Path, algorithm: str, _changed_ns: int, _size: int) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file of the cache: under a temporary name, which is replaced at the end. After an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            for piece in pieces:
                file.write(piece)
        except BaseException:
            temporary.unlink()
            raise
    temporary.replace(path)


def _found_or_downloaded(name: str, corpus: NamedCorpus, file: CorpusFile, cache: Path | None) -> Path:
    there = found_file(file, cache)
    if there is not None:
        path, given = there
        if given or _is_right(path, file):
            check_file(path, file.checksum, f"corpus {name!r}", "removing the file, then it is downloaded")
            return path
    return _download(name, corpus, file, cache or corpus_cache())


def _is_right(path: Path, file: CorpusFile) -> bool:
    algorithm, _, wanted = file.checksum.partition(":")
    return file_sum(path, algorithm) == wanted


def _download(name: str, corpus: NamedCorpus, file: CorpusFile, folder: Path) -> Path:
    pooch = require("pooch", extra="download", purpose=f"downloading corpus {name!r}")
    failures: list[str] = []
    for url in (corpus.url, *corpus.mirrors):
        try:
            _retrieve(pooch, corpus, file, url, folder)
            break
        except Exception as failed:  # pooch passes on any error of its transport: OSError, ValueError, its own
            reason = next(iter(str(failed).splitlines()), "")
            failures.append(f"{url} failed ({type(failed).__name__}: {reason})")
    else:
        more = f", and from {len(failures) - 1} mirrors too" if len(failures) > 1 else ""
        raise BitStreamError(
            f"corpus {name!r}: download from {failures[0]}{more}. "
            f"Try putting {file.name!r} into a folder and setting {DATA_DIR_VARIABLE} to it"
        )
    path = folder / file.name
    try:
        check_file(path, file.checksum, f"corpus {name!r}", "again; the file is removed")
    except BitStreamError:
        path.unlink()  # extraction was interrupted
        raise
    return path


def _retrieve(pooch: Any, corpus: NamedCorpus, file: CorpusFile, url: str, folder: Path) -> None:
    """Download a file, or the archive that it is in, into a folder; the archive is unpacked there."""
    members: Sequence[str] = [one.name for one in corpus.files]
    pooch.retrieve(
        url,
        known_hash=corpus.archive or file.checksum,
        fname=Path(url).name if corpus.archive else file.name,
        path=folder,
        processor=pooch.Unzip(members=list(members), extract_dir=".") if corpus.archive else None,
        progressbar=False,
    )


# ---- standard parts ----


def with_parts() -> Iterator[str]:
    """Names of the corpora that have standard parts."""
    return (name for name, corpus in REGISTRY.items() if corpus.parts)
