"""WebDataset's tars: files of one name, up to the first dot, are one sample; `.cls` holds its label.

Tars are read from front to back, compressed or not, and nothing of them is kept but how many images each holds.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewstep.errors import DataError
from fewstep.tasks.data.places import matches
from fewstep.tasks.data.shards import ShardedSource, chosen
from fewstep.tasks.data.source import Record
from fewstep.tasks.image_folder import SUFFIXES as IMAGES
from fewstep.tasks.image_folder import counted, kind_of

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LABEL = "cls"


@dataclass
class Sample:
    """What one sample of a tar holds of what we read."""

    key: str
    name: str = ""
    image: bytes = b""
    label: str | None = None


class TarSource(ShardedSource):
    """One tar, shards by a pattern, or a folder of tars."""

    what = "WebDataset's .tar files"

    def __init__(self, place: str) -> None:
        super().__init__(place, matches(place, SUFFIXES))
        if not self.files:
            raise DataError(f"no .tar file at {place}: check the path")
        texts: set[str] = set()
        for path in self.files:
            count = 0
            for sample in self._samples(path, images=False):
                count += 1
                texts |= {sample.label} - {None}  # type: ignore[arg-type]
            self.counts.append(count)
        # What was left out is said of the whole, and not counted again when images are read.
        self.said = [f"{self.notes.total()} files skipped: {counted(self.notes)}"] if self.notes else []
        self.notes.clear()
        self._numbers = {text: int(text) for text in texts if text.isdecimal()}
        if len(self._numbers) < len(texts):
            self.classes = tuple(sorted(texts))
            self._numbers = {text: i for i, text in enumerate(self.classes)}
        self.check()

    @classmethod
    def takes(cls, place: str) -> bool:
        """Where a tar is."""
        return bool(matches(place, SUFFIXES))

    def read_file(self, path: Path, indices: range) -> Iterator[Record]:
        """The samples of these numbers."""
        for sample in chosen(self._samples(path), indices):
            label = None if sample.label is None else self._numbers.get(sample.label)
            yield Record(f"{sample.name} of {path}", sample.image, label)

    def _samples(self, path: Path, images: bool = True) -> Iterator[Sample]:
        """Samples with an image, in the tar's order; the image itself only where it is asked for."""
        current = Sample("")
        try:
            with tarfile.open(path, "r:*") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # Or every header stays in memory.
                    if not member.isfile():
                        continue
                    key, kind = _split(member.name)
                    if key != current.key:
                        if current.name:
                            yield current
                        current = Sample(key)
                    if "." + kind.rpartition(".")[2] in IMAGES and not key.rpartition("/")[2].startswith("._"):
                        if current.name:
                            raise DataError(
                                f"{path}: sample {key} holds {current.name} and {member.name}: keep one image a sample"
                            )
                        current.name = member.name
                        current.image = _content(tar, member) if images else b""
                    elif kind == LABEL:
                        current.label = _content(tar, member).decode().strip()
                    elif not images:
                        self.notes[kind_of(member.name)] += 1
                _check_end(tar)
                if current.name:
                    yield current
        except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError(f"cannot read {path}: {reason}; replace it") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """A whole tar ends with blocks of zeros; one that was cut off between two files would read as a smaller one."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("it has no end: it is cut off")


def _split(name: str) -> tuple[str, str]:
    """The sample's key and the rest of the name, in lower case."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.lstrip(".").partition(".")
    return str(path.parent / stem), kind.lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) < member.size:
        raise ValueError(f"{member.name} is cut off")
    return data
