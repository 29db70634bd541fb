"""Judges of any kind: what they say is what their network says, and what cannot judge an attribute is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, FewstepError, ModelError
from fewstep.tasks.editing.attributes import Attribute
from fewstep.tasks.editing.bench import make_bench
from fewstep.tasks.editing.judge import Judge, check_judge, check_named, identity_of, make_judge, with_judge
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import ZOO, ModelFiles, find_model
from fewstep.tasks.models.judge import JudgeNetwork

NINE = Attribute("nine", (9,), (4,))
DIGITS = tuple("0123456789")
OWN = str(ZOO / "digits-ddpm" / "classifier")


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return find_model("digits-ddpm")


def subject(**fields: Any) -> EditSubject:
    return EditSubject.build(**{"model": "digits-ddpm", "data": "digits", "attribute": "nine", **fields})


def judge(files: ModelFiles, attribute: Attribute = NINE, classes: tuple[str, ...] = DIGITS, **fields: Any) -> Judge:
    return make_judge(subject(**fields), files, "cpu", attribute, classes)


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Corners(nn.Module):
    """Scores: the first pixels of an image."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.labels]


def scripted(path: Path, labels: int) -> str:
    torch.jit.script(Corners(labels)).save(str(path))
    return str(path)


def test_judges_of_either_own_kind_are_read(tmp_path: Path, files: ModelFiles) -> None:
    small = judge(files, judge=OWN)
    assert small.has(images(3)).shape == (3,)
    assert np.isnan(small.accuracy)
    JudgeNetwork(1, 8, 10, width=4).save(tmp_path)
    (tmp_path / "card.json").write_text('{"accuracy": 0.9}')
    other = judge(files, judge=str(tmp_path))
    assert other.accuracy == 0.9
    assert (other.positive, other.negative) == ((9,), (4,))
    with pytest.raises(ConfigurationError, match="the judge takes 1x8x8"):
        other.has(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ConfigurationError, match="fashion takes 1x28x28 images, the model digits-ddpm makes 1x8x8"):
        judge(files, judge="fashion")
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ModelError, match="does not say the judge's accuracy"):
        judge(files, judge=str(tmp_path))


def test_labels_that_exclude_each_other_are_the_highest_score(tmp_path: Path, files: ModelFiles) -> None:
    found = judge(files, judge=scripted(tmp_path / "ten.pt", 10))
    highest = images().flatten(1)[:, :10].argmax(1).numpy()
    assert np.array_equal(found.has(images()), highest == 9)
    assert np.array_equal(found.lacks(images()), highest == 4)
    named = judge(files, judge=str(tmp_path / "ten.pt"), judge_positive="1|2")
    assert np.array_equal(named.has(images()), np.isin(highest, (1, 2)))
    assert np.array_equal(named.lacks(images()), ~named.has(images()))


def test_one_score_is_the_attributes_own(tmp_path: Path, files: ModelFiles) -> None:
    found = judge(files, judge=scripted(tmp_path / "one.ts", 1))
    first = images().flatten(1)[:, 0].numpy()
    assert np.array_equal(found.has(images()), first > 0)
    assert np.array_equal(found.lacks(images()), first <= 0)


def test_probabilities_are_noticed(tmp_path: Path, files: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    for name, squash in (("odds", ""), ("shares", ".sigmoid()")):
        (tmp_path / f"{name}.py").write_text(
            f"def own():\n    return lambda x: (9 * x.mean(dim=(1, 2, 3))[:, None]){squash}\n"
        )
        assert judge(files, judge=f"{tmp_path / name}.py:own").separate
        assert ("have it give log-odds" in caplog.text) == bool(squash)


def test_code_of_ones_own_judges_and_its_source_is_its_address(tmp_path: Path, files: ModelFiles) -> None:
    code = tmp_path / "own.py"
    code.write_text("def bright():\n    return lambda x: x.mean(dim=(1, 2, 3))[:, None]\n")
    found = judge(files, judge=f"{code}:bright")
    assert np.array_equal(found.has(images()), images().mean((1, 2, 3)).numpy() > 0)
    other = tmp_path / "other.py"
    other.write_text(code.read_text().replace(", None]", ", None] * 2"))
    assert identity_of(judge(files, judge=f"{other}:bright").scores) != identity_of(found.scores)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """An untrained ViT with two labels of three classes of people; of the given kind of problem."""
    import transformers as t

    def make(problem: str) -> str:
        folder = tmp_path_factory.mktemp("vit") / (problem or "plain")
        labels = {0: "Smiling", 1: "Wearing Hat", 2: "Other"}
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = t.ViTConfig(image_size=8, patch_size=4, id2label=labels, problem_type=problem or None, **sizes)
        torch.manual_seed(0)
        network = t.ViTForImageClassification(config).eval()
        nn.init.normal_(network.classifier.weight)
        network.save_pretrained(str(folder))
        t.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(str(folder))
        return str(folder)

    return make


def logits(folder: str) -> Any:
    import transformers as t

    network = t.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return network(pixel_values=images().repeat(1, 3, 1, 1)).logits.numpy()


def test_a_transformers_classifier_judges_by_its_labels_names(vit: Callable[[str], str], files: ModelFiles) -> None:
    folder = vit("")
    found = judge(files, judge=folder, judge_positive="wearing hat", judge_negative="Smiling|2")
    highest = logits(folder).argmax(1)
    assert np.array_equal(found.has(images()), highest == 1)
    assert np.array_equal(found.lacks(images()), highest != 1)
    # Classes of the data are found by their names.
    by_class = judge(files, Attribute("a", (1,), (0,)), ("other", "smiling"), judge=folder)
    assert (by_class.positive, by_class.negative) == ((0,), (2,))
    # Three labels of names of their own are not the three classes of other names, in whatever order.
    with pytest.raises(ConfigurationError, match="the data have 3 classes of other names"):
        judge(files, Attribute("a", (1,), (0,)), ("plain", "smile", "hat"), judge=folder)
    with pytest.raises(ConfigurationError, match=r"tells 3 labels apart, the data have 10 classes.*--judge-positive"):
        judge(files, judge=folder)
    with pytest.raises(ConfigurationError, match="no label 'hat': it has Smiling, Wearing Hat, Other"):
        judge(files, judge=folder, judge_positive="hat")
    with pytest.raises(ConfigurationError, match="on both sides"):
        judge(files, judge=folder, judge_positive="0", judge_negative="smiling")


def test_labels_told_one_by_one_are_shown_above_zero(vit: Callable[[str], str], files: ModelFiles) -> None:
    folder = vit("multi_label_classification")
    found, scores = judge(files, judge=folder, judge_positive="Smiling"), logits(folder)
    assert np.array_equal(found.has(images()), scores[:, 0] > 0)
    assert np.array_equal(found.lacks(images()), scores[:, 0] <= 0)


def test_clip_judges_by_the_nearer_of_two_texts(clip: Path, files: ModelFiles) -> None:
    from fewstep.tasks.metrics.clip_score import ImagesAndTexts

    texts = {"judge_positive": "a nine", "judge_negative": "a four|a cat"}
    found = judge(files, judge=str(clip), **texts)
    model = ImagesAndTexts(clip, "cpu")
    cosine = (model.images(images()) @ model.texts(("a nine", "a four", "a cat")).T).numpy()
    assert np.array_equal(found.has(images()), cosine.argmax(1) == 0)
    assert np.array_equal(found.lacks(images()), cosine.argmax(1) != 0)
    other = judge(files, judge=str(clip), judge_positive="a nine", judge_negative="a dog")
    assert identity_of(other.scores) != identity_of(found.scores)
    for given in ({}, {"judge_positive": "a nine|a four"}):
        with pytest.raises(ConfigurationError, match="--judge-positive 'a smiling face'"):
            judge(files, judge=str(clip), **given)
    # A boundary of two prompts says what the texts are.
    prompts = {"text_model": "any", "positive_prompt": "a nine", "negative_prompt": "a four|a cat"}
    prompted = judge(files, Attribute("prompted", (1,), (0,)), ("without", "with"), judge=str(clip), **prompts)
    pair = (model.images(images()) @ model.texts(("a nine", "a four|a cat")).T).numpy()
    assert np.array_equal(prompted.has(images()), pair[:, 0] >= pair[:, 1])


def test_a_search_that_named_no_judge_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert with_judge(subject()).judge == "train"
    assert "no judge was named" in caplog.text
    assert with_judge(subject(judge=OWN)) == subject(judge=OWN)


def test_none_is_trained_that_was_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"say what judges success: --judge digits\|fashion.*--judge train"):
        check_named(subject())
    with pytest.raises(ConfigurationError, match="say what judges success"):
        assert make_bench(subject(), tmp_path).judge
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"judge": "nobody"}, "no judge 'nobody': give digits, fashion"),
        ({"judge": "missing.pt"}, "no feature network at missing.pt"),
        ({"judge": "os:nothing"}, "'os:nothing' cannot be loaded"),
        ({"judge": "train", "judge_positive": "9"}, "give one that knows them"),
        ({"judge": OWN, "judge_negative": "9"}, "judge_negative needs judge_positive"),
        ({"judge": OWN, "judge_steps": 7}, "judge_steps are for --judge train"),
        ({"judge": OWN, "judge_positive": "10"}, "no label '10'"),
        ({"judge": OWN, "judge_positive": "0|1|2|3|4|5|6|7|8|9"}, "every label means the attribute"),
        ({"judge": OWN, "text_model": "any", "positive_prompt": "a\nb", "negative_prompt": "c"}, "one line"),
    ],
)
def test_what_cannot_judge_is_refused(fields: dict[str, Any], words: str, files: ModelFiles) -> None:
    with pytest.raises(FewstepError, match=words):
        check_judge(subject(**fields), files)
