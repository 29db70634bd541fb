"""Images that are kept in different ways are the same images: same order, pixels and labels, and faults are named."""

from __future__ import annotations

import io
import json
import logging
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow

from fewstep.errors import DataError
from fewstep.pipeline import cli
from fewstep.tasks.data import SOURCES, kind_of_place, load_images, open_source
from fewstep.tasks.data.source import UNLABELLED
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.files import find_model

COUNT, SIDE = 7, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 1, 1])
NAMES = ("cat", "dog")


def encoded(i: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(PIXELS[i]).save(file, "PNG")
    return file.getvalue()


Encode = Callable[[int], bytes]
Rows = list[dict[str, Any]]


def rows(encode: Encode) -> Rows:
    return [{"image": {"bytes": encode(i), "path": f"{i}.png"}, "label": int(LABELS[i])} for i in range(COUNT)]


def folder(place: Path, encode: Encode) -> str:
    for i in range(COUNT):
        path = place / NAMES[LABELS[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i))
    return str(place)


def parquet(place: Path, encode: Encode) -> str:
    """Two shards, the first of two row groups, with the description that Hugging Face's files hold."""
    (place / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows(encode))
    info = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table[:5], place / "data" / "train-00000-of-00002.parquet", row_group_size=3)
    pq.write_table(table[5:], place / "data" / "train-00001-of-00002.parquet")
    return str(place)


def plain_parquet(place: Path, encode: Encode) -> str:
    """Bytes alone, labels by name, kept as a dictionary, and a column that is of no interest."""
    place.mkdir()
    names = pa.array([NAMES[label] for label in LABELS]).dictionary_encode()
    images = pa.array([encode(i) for i in range(COUNT)])
    pq.write_table(pa.table({"img": images, "label": names, "caption": ["x"] * COUNT}), place / "all.parquet")
    return str(place / "*.parquet")


def arrow(place: Path, encode: Encode) -> str:
    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    Dataset.from_list(rows(encode), features=features).save_to_disk(str(place), num_shards=3)
    return str(place)


def tars(place: Path, encode: Encode, suffix: str = "tar") -> str:
    place.mkdir()
    for shard, numbers in enumerate((range(3), range(3, COUNT))):
        with tarfile.open(place / f"x-{shard:03}.{suffix}", "w:gz" if suffix.endswith("gz") else "w") as tar:
            for i in numbers:
                members = {"json": b"{}", "cls": str(LABELS[i]).encode(), "png": encode(i)}
                for kind, content in members.items():
                    member = tarfile.TarInfo(f"./deep/{i:04}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(place / f"x-{{000..001}}.{suffix}")


def packed_tars(place: Path, encode: Encode) -> str:
    tars(place, encode, "tar.gz")
    return str(place)


def database(place: Path, encode: Encode) -> str:
    with lmdb.open(str(place), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for i in range(COUNT):
            transaction.put(f"{i:05}".encode(), encode(i))
        transaction.put(b"length", b"7")
    return str(place)


def arrays(place: Path, encode: Encode) -> str:
    np.savez_compressed(place.with_suffix(".npz"), PIXELS, LABELS)  # arr_0 and arr_1, as ADM's.
    return str(place.with_suffix(".npz"))


# How a place is made, which kind it is, whether it has labels, and whether these have names.
KINDS: dict[str, tuple[Callable[[Path, Encode], str], str, bool, bool]] = {
    "folder": (folder, "folder", True, True),
    "parquet": (parquet, "parquet", True, True),
    "plain parquet": (plain_parquet, "parquet", True, True),
    "arrow": (arrow, "arrow", True, True),
    "tars": (tars, "webdataset", True, False),
    "packed tars": (packed_tars, "webdataset", True, False),
    "lmdb": (database, "lmdb", False, False),
    "npz": (arrays, "npz", True, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_images_are_read_from_every_kind_of_place(name: str, tmp_path: Path) -> None:
    make, kind, labelled, named = KINDS[name]
    place = make(tmp_path / "place", encoded)
    assert kind_of_place(place) == (kind, place)
    assert kind_of_place(f"{kind}:{place}") == (kind, place)
    source = open_source(place)
    assert len(source) == COUNT
    assert source.classes == (NAMES if named else ())
    images, labels = load_images(source, 3, SIDE)
    assert np.array_equal(images, PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    assert np.array_equal(labels, LABELS if labelled else np.full(COUNT, UNLABELLED))
    # Any part of it, in any batches, is the same part.
    for indices in (range(2, 6), range(6, 7), source.shard(1, 3), source.shard(0, 2), range(3, 3)):
        parts = list(source.batches(3, SIDE, 2, indices))
        if len(indices):
            assert np.array_equal(np.concatenate([part.images for part in parts]), images[list(indices)])
            assert np.array_equal(np.concatenate([part.labels for part in parts]), labels[list(indices)])
        else:
            assert not parts
    assert open_source(place).fingerprint == source.fingerprint


def test_statistics_of_every_kind_of_place_are_the_reference_that_the_place_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two spaces, and for pytorch-fid, which reads `mu` and `sigma`."""
    (tmp_path / "squares.py").write_text(
        "import torch\n\ndef make():\n    return lambda x: torch.cat([x.flatten(1).mean(1, True), x[:, 0, 2, :2]], 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    places = [make(tmp_path / name, encoded) for name, (make, *_) in KINDS.items()]
    model, out = find_model("digits-ddpm"), tmp_path / "moments.npz"
    for features in ("auto", "squares:make"):
        extractor = make_extractor(features, model, "cpu")
        seen = extractor(torch.from_numpy(load_images(open_source(places[0]), 1, 8).images))
        for place in places if features == "auto" else places[1:2]:
            asked = ["--model", "digits-ddpm", "--data", place, "--features", features, "--out", str(out), "--json"]
            monkeypatch.setattr(sys, "argv", ["fewstep", "statistics", *asked])
            monkeypatch.setattr(cli.app, "registered_commands", [])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code in (0, None)
            assert json.loads(capsys.readouterr().out)["images"] == COUNT
            written = np.load(out)
            np.testing.assert_allclose(written["mu"], seen.mean(0), atol=1e-6)
            np.testing.assert_allclose(written["sigma"], np.cov(seen.T), atol=1e-6)
            same = [load_reference(reference, model, features, extractor)[1] for reference in (str(out), place)]
            assert same[0] == same[1]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "npz"])
def test_a_broken_image_is_named(name: str, tmp_path: Path) -> None:
    place = KINDS[name][0](tmp_path / "place", lambda i: encoded(i)[: 50 if i == 4 else None])
    with pytest.raises(DataError, match=r"cannot read .*4"):
        load_images(open_source(place), 3, SIDE)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("folder", "lmdb")])
def test_a_file_that_is_cut_off_is_named(name: str, tmp_path: Path) -> None:
    place = KINDS[name][0](tmp_path / "place", encoded)
    file = open_source(place).files[-1]
    for damage in (0.55, 0.2, 0):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * damage)])
        with pytest.raises(DataError) as refused:
            load_images(open_source(place), 3, SIDE)
        assert file.name in str(refused.value) or "not there" in str(refused.value)


def test_a_tar_that_is_cut_off_between_two_files_is_named(tmp_path: Path) -> None:
    tars(tmp_path / "place", encoded)
    file = tmp_path / "place" / "x-001.tar"
    with tarfile.open(file) as tar:
        end = tar.getmembers()[-2].offset  # Of the last sample's label: its image and label are lost.
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(DataError, match="cut off"):
        open_source(str(file))


def test_an_image_of_any_size_is_resized_by_its_short_side_and_cropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ramp = np.tile(np.linspace(0, 255, 48)[:, None], (1, 64)).astype(np.uint8)
    middle = np.zeros((64, 48), np.uint8)
    middle[16:48] = 200
    line = np.zeros((64, 64), np.uint8)
    line[::2] = 255
    for name, values in (("a wide ramp", ramp), ("a tall middle", middle.astype(np.uint16) * 257), ("stripes", line)):
        Pillow.fromarray(values).save(tmp_path / f"{name}.png")
    Pillow.fromarray(np.full((3, 5), 90, np.uint8)).save(tmp_path / "small.png")
    with caplog.at_level(logging.WARNING):
        images = load_images(open_source(str(tmp_path)), 1, 8).images[:, 0]
    levels = (images + 1) * 127.5
    tall, wide, small, stripes = levels
    assert np.allclose(tall[3], 200, atol=0.1)
    assert np.all(tall[0] < 1)
    assert np.ptp(wide, axis=1).max() < 1e-3  # Along the ramp nothing changes.
    assert np.all(np.diff(wide[:, 0]) > 0)
    assert np.allclose(stripes, 127.5, atol=12)  # Averaged: a filter that skips pixels would give 0 or 255.
    assert np.allclose(small, 90, atol=1e-3)
    (told,) = [message for message in caplog.messages if "resized" in message]
    assert "of 4 images 3 resized and cropped, 1 smaller than the model's, enlarged" in told


def test_what_is_resized_is_what_pillow_makes_of_the_whole_picture() -> None:
    from fewstep.tasks.image_file import fitted

    values = np.random.default_rng(1).integers(0, 256, (40, 100)).astype(np.float32)
    whole = Pillow.fromarray(values).resize((50, 20), Pillow.Resampling.BICUBIC)
    assert np.allclose(fitted(values[..., None], 20)[..., 0], np.asarray(whole)[:, 15:35].clip(0, 255), atol=1e-2)


def _no_column(place: Path) -> str:
    pq.write_table(pa.table({"text": ["a"]}), place / "t.parquet")
    return str(place / "t.parquet")


def _two_splits(place: Path) -> str:
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows(encoded)), place / f"{split}-0.parquet")
    return str(place)


def _split_dictionary(place: Path) -> str:
    DatasetDict({"train": Dataset.from_list(rows(encoded))}).save_to_disk(str(place / "d"))
    return str(place / "d")


def _floats(place: Path) -> str:
    np.savez(place / "a.npz", images=np.zeros((2, 4, 4, 3)))
    return str(place / "a.npz")


def _planes_first(place: Path) -> str:
    np.savez(place / "a.npz", images=np.zeros((2, 3, 4, 5), np.uint8))
    return str(place / "a.npz")


def _other_labels(place: Path) -> str:
    np.savez(place / "a.npz", PIXELS, LABELS[:3])
    return str(place / "a.npz")


def _two_pictures(place: Path) -> str:
    with tarfile.open(place / "a.tar", "w") as tar:
        for name in ("a.png", "a.mask.png"):
            tar.addfile(tarfile.TarInfo(name))
    return str(place / "a.tar")


def _nothing_in_it(place: Path) -> str:
    tarfile.open(place / "a.tar", "w").close()
    return str(place / "a.tar")


def _shard_missing(place: Path) -> str:
    tarfile.open(place / "a-0.tar", "w").close()
    return str(place / "a-{0..1}.tar")


def _no_image_value(place: Path) -> str:
    with lmdb.open(str(place / "l")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", b"text")
    return str(place / "l")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_column, "no column of images"),
        (_two_splits, "test, train.*give one, as"),
        (_split_dictionary, "train"),
        (_floats, "uint8"),
        (_planes_first, "uint8"),
        (_other_labels, "label of 0 and up for each"),
        (_two_pictures, "one image a sample"),
        (_nothing_in_it, "no images"),
        (_shard_missing, "a-1.tar is not there"),
        (_no_image_value, "no encoded image"),
        (lambda place: str(place / "absent"), "give one of"),
        (lambda place: "parquet:" + str(place / "absent.parquet"), r"no \.parquet file"),
    ],
)
def test_what_cannot_be_used_is_said(make: Callable[[Path], str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        open_source(make(tmp_path))


def test_every_kind_says_what_it_is() -> None:
    assert all(SOURCES.load(name).what for name in SOURCES.names)


def test_folders_are_labels_only_where_every_image_lies_in_one(tmp_path: Path) -> None:
    place = folder(tmp_path, encoded)
    assert open_source(place).classes == NAMES
    (tmp_path / "stray.png").write_bytes(encoded(0))
    source = open_source(place)
    assert source.classes == ()
    assert (load_images(source, 3, SIDE).labels == UNLABELLED).all()


def test_bundled_data_sets_are_sources_by_name() -> None:
    source = open_source("digits")
    (batch,) = source.batches(1, 8, 5, range(5))
    assert batch.images.shape == (5, 1, 8, 8)
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]
    (larger,) = source.batches(3, 16, 5, range(5))
    assert larger.images.shape == (5, 3, 16, 16)
