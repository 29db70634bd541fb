"""What workers on other machines are sent: the same files, once, where they do not have them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.tasks import parcel as parcel_module
from fewstep.tasks.metrics.spaces import loaded
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.parcel import packed, unpacked
from fewstep.tasks.work import Subject, WorkerSettings


class Store:
    """References are numbers."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.gets = 0

    def put(self, value: Any) -> int:
        self.kept.append(np.array(value))
        return len(self.kept) - 1

    def get(self, reference: int) -> Any:
        self.gets += 1
        return self.kept[reference]


def _named(root: Path) -> WorkerSettings:
    for name in ("my-model/unet/config.json", "my-model/weights.bin", "net/a", "reference.npz", "w.pt", "face.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(100) if name.endswith("bin") else name.encode())
    (root / "my-model" / "empty").touch()
    subject = Subject(
        str(root / "my-model"),
        features=f"inception:{root / 'w.pt'}",
        reference=str(root / "reference.npz"),
        conditions=Conditions(image=str(root / "face.png"), call=(f"other={root / 'w.pt'}", "strength=0.6")),
        quantized=str(root / "net"),
        edits=json.dumps(
            {
                "model": str(root / "my-model"),
                "data": "digits",
                "text_model": str(root / "net"),
                "text_call": [f"other={root / 'w.pt'}", "strength=0.6"],
                "judge": str(root / "w.pt"),
                "identity": f"perceptual:{root / 'net'}",
            }
        ),
    )
    return WorkerSettings(subject, cache=str(root / "cache"))


def _content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_machine_without_the_files_gets_the_same_ones_once(tmp_path: Path) -> None:
    root, cache, store = tmp_path / "here", tmp_path / "there", Store()
    root.mkdir()
    asked = _named(root)
    parcel, before = packed(asked, store.put), _content(root / "my-model")
    root.rename(tmp_path / "gone")
    got = unpacked(parcel, store.get, cache)
    assert Path(got.subject.model).name == "my-model"
    assert _content(Path(got.subject.model)) == before
    kind, _, weights = got.subject.features.partition(":")
    assert (kind, Path(weights).read_bytes()) == ("inception", b"w.pt")
    assert Path(got.subject.reference).read_bytes() == b"reference.npz"
    assert Path(got.subject.conditions.image).read_bytes() == b"face.png"
    assert got.subject.conditions.call == (f"other={weights}", "strength=0.6")
    assert _content(Path(got.subject.quantized)) == {"a": b"net/a"}
    assert json.loads(got.subject.edits) == {
        "model": got.subject.model,
        "data": "digits",
        "text_model": got.subject.quantized,
        "text_call": [f"other={weights}", "strength=0.6"],
        "judge": weights,
        "identity": f"perceptual:{got.subject.quantized}",
    }
    assert str(root) not in repr(got)
    gets = store.gets
    assert unpacked(parcel, store.get, cache) == got
    assert store.gets == gets


def test_where_the_same_files_are_they_are_used(tmp_path: Path) -> None:
    store = Store()
    asked = _named(tmp_path)
    (tmp_path / "cache").mkdir()
    parcel = packed(asked, store.put)
    got = unpacked(parcel, store.get, tmp_path / "unused")
    assert got.subject.model == asked.subject.model
    assert got.cache == asked.cache
    assert store.gets == 0
    # Of the same name, but others.
    (tmp_path / "my-model" / "weights.bin").write_bytes(b"changed")
    assert unpacked(parcel, store.get, tmp_path / "unused").subject.model != asked.subject.model


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the user's, which is gone once the test has moved on."""
    monkeypatch.setattr(loaded, "SENT", sent := dict[str, str]())
    monkeypatch.setattr(parcel_module, "SENT", sent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("name", ["mine.py:double", "kid:mine.py:double", "mine_beside:double"])
def test_code_of_the_user_is_there_on_a_machine_that_has_not_the_file(elsewhere: Path, name: str) -> None:
    store, file = Store(), f"{name.split(':')[-2].removesuffix('.py')}.py"
    (elsewhere / file).write_text("def double(images):\n    return 2 * images\n")
    given = name.removeprefix("kid:")
    for settings in (
        WorkerSettings(Subject("digits-ddpm", features=given)),
        WorkerSettings(Subject("digits-ddpm"), metrics=("frechet", name)),
    ):
        (elsewhere / file).touch()
        sent = packed(settings, store.put)
        (elsewhere / file).rename(elsewhere.parent / file)
        assert unpacked(sent, store.get, elsewhere.parent / "cache") == settings
        assert loaded.load(given, "features")(21) == 42
        # Known by what it is, not by where it lies.
        assert (
            loaded.address(given, loaded.load(given, "features"))
            == hashlib.sha256(b"double" + (elsewhere.parent / file).read_bytes()).hexdigest()
        )
        (elsewhere.parent / file).rename(elsewhere / file)


def test_code_that_a_machine_cannot_load_is_refused_before_anything_runs(elsewhere: Path) -> None:
    store = Store()
    (elsewhere / "mine.py").write_text("from pathlib import Path\nPath(__file__).with_name('w.txt').read_text()\n")
    (elsewhere / "w.txt").write_text("weights")
    sent = packed(WorkerSettings(Subject("digits-ddpm"), metrics=("scorer:mine.py:score",)), store.put)
    (elsewhere / "mine.py").unlink()
    with pytest.raises(ConfigurationError, match=r"'mine.py:score' cannot be loaded: FileNotFoundError"):
        unpacked(sent, store.get, elsewhere.parent / "cache")


def test_bundled_names_are_not_sent(tmp_path: Path) -> None:
    store = Store()
    asked = WorkerSettings(Subject("digits-ddpm"))
    assert unpacked(packed(asked, store.put), store.get, tmp_path) == asked
    assert store.kept == []
