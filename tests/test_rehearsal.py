"""A dry run: everything is built, two small steps are made, and what it says of the whole is right."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from seglearn import models
from seglearn.cli import main
from seglearn.data import voc
from seglearn.errors import InputError
from seglearn.training import Recipe, load_recipe, recipe_names
from seglearn.training.rehearsal import cost, duration, rehearse

IDS = [f"2008_00000{index}" for index in range(8)]


@pytest.fixture
def voc_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VOC's folders: palette PNGs of odd sizes with borders of 255."""
    monkeypatch.setattr(voc, "SPLITS", {"train": 5, "val": 3, "trainval": 8, "trainaug": 5})
    monkeypatch.setenv("SEGLEARN_DATA", str(tmp_path))
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass", "SegmentationClassAug"):
        (folder / part).mkdir(parents=True)
    splits = {"train": IDS[:5], "val": IDS[5:], "trainval": IDS, "trainaug": IDS[:5]}
    for split, names in splits.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for index, name in enumerate(IDS):
        size = (61 + 7 * index, 83 - 5 * index)
        Image.new("RGB", size, (90, 120, 30 * index)).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.new("P", size, 1 + index)
        mask.putpalette([value for colour in voc.voc_palette(256) for value in colour])
        mask.paste(255, (20, 20, 24, 50))
        for part in ("SegmentationClass", "SegmentationClassAug"):
            mask.save(folder / part / f"{name}.png")
    return folder


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("voc/")])
def test_every_voc_recipe(name: str, voc_tree: Path) -> None:
    """What has to be downloaded or trained first is left out; all else is the recipe's.

    Norms learn here, too: frozen at their start they normalise nothing, and random weights need them.
    """
    recipe = load_recipe(name)
    recipe = replace(recipe, backbone_weights=None, init_from=None, freeze_norms=False, split="train")
    found = rehearse(replace(recipe, batch_size=4, accumulate=1))
    assert len(found.losses) == 2 and all(0 < loss < 1e7 for loss in found.losses)
    assert found.images == 5 and found.steps == recipe.epochs
    assert found.memory > 1e6 and found.flops > 1e9


def test_what_it_says_of_a_laptop_recipe(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(Recipe(epochs=7, batch_size=4, crop=(64, 96), lr=0.01).to_yaml())
    with pytest.raises(SystemExit) as exit_info:
        main(["train", str(file), "--folder", str(tmp_path / "run"), "--dry-run", "--epochs", "10"])
    assert exit_info.value.code == 0
    page = capsys.readouterr().out
    assert "camvid: 12 images of train, 5 of val" in page
    assert "1,880,241 parameters, 1,880,241 of them learn" in page
    assert "30 steps over 12 images" in page
    assert not (tmp_path / "run").exists()


def test_frozen_parts_do_not_learn(camvid: Path) -> None:
    recipe = Recipe(batch_size=4, crop=(64, 96))
    whole, part = rehearse(recipe), rehearse(replace(recipe, freeze=("backbone",)))
    backbone = sum(p.numel() for p in models.create("fcn8s", 11, "laptop").backbone.parameters())  # type: ignore[union-attr]
    assert part.trainable == whole.trainable - backbone and part.parameters == whole.parameters
    assert part.memory < whole.memory


def test_memory_and_operations_of_a_net_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One 3x3 convolution from 3 to 5 channels: 27 multiply-adds for each of 5 outputs, once forward and once back."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)

        def loss(self, images: torch.Tensor, labels: torch.Tensor, criterion: object) -> torch.Tensor:
            return self.conv(images).sum()

    monkeypatch.setattr(models, "create", lambda *_, **__: Net())
    flops, memory = cost(Recipe(), (10, 20), 5, 255)
    assert flops == 2 * (2 * 10 * 20 * 5 * 27)  # the weights' gradient costs what the convolution costs
    assert memory == 10 * 20 * 3 * 4  # the image, in float32


def test_it_refuses_what_training_would(camvid: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 100 but the training split has 12"):
        rehearse(Recipe(batch_size=100))
    with pytest.raises(InputError, match="checkpoint nowhere.safetensors is not there"):
        rehearse(Recipe(batch_size=4, init_from="nowhere.safetensors"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "3 seconds"), (119, "119 seconds"), (150, "2 minutes"), (9000, "2 hours"), (4e5, "5 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
