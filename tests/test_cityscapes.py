"""Trees in the layout of Cityscapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seglearn import data
from seglearn.data import Cityscapes
from seglearn.errors import InputError

# Labels and their train ids, from the dataset's own table (labels.py of cityscapesScripts).
TRAINED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
TRAIN_IDS = {label: index for index, label in enumerate(TRAINED)}


def write_frame(root: Path, split: str, name: str, label: np.ndarray, kind: str = "labelIds") -> Path:
    city = name.split("_")[0]
    images, masks = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(len(name)).integers(0, 256, (*label.shape, 3), np.uint8)
    Image.fromarray(colours).save(images / f"{name}_leftImg8bit.png")
    Image.fromarray(label.astype(np.uint8)).save(masks / f"{name}_gtFine_{kind}.png")
    Image.fromarray(label.astype(np.uint8)).save(masks / f"{name}_gtFine_instanceIds.png")
    return masks / f"{name}_gtFine_{kind}.png"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    label = np.arange(34).reshape(2, 17)
    write_frame(tmp_path, "train", "ulm_000000_000019", label)
    write_frame(tmp_path, "train", "aachen_000000_000019", label)
    write_frame(tmp_path, "val", "lindau_000000_000019", label)
    return tmp_path


def test_label_ids_become_train_ids(tree: Path) -> None:
    dataset = data.create("cityscapes", "train", tree)
    assert dataset.ids == ["aachen_000000_000019", "ulm_000000_000019"]
    image, label = dataset[0]
    assert image.shape == (3, 2, 17) and label.dtype == torch.uint8
    assert label.flatten().tolist() == [TRAIN_IDS.get(id, 255) for id in range(34)]


def test_a_split_of_another_size_is_warned_of(tree: Path) -> None:
    with pytest.warns(UserWarning, match=r"Cityscapes train has \d+ pictures here, the published split 2975"):
        Cityscapes("train", tree)


def test_classes_and_palette() -> None:
    assert Cityscapes.classes[:4] == ("road", "sidewalk", "building", "wall") and len(Cityscapes.classes) == 19
    assert Cityscapes.classes[-3:] == ("train", "motorcycle", "bicycle")
    assert Cityscapes.palette[0] == (128, 64, 128) and Cityscapes.palette[18] == (119, 11, 32)
    assert Cityscapes.palette[8] == (107, 142, 35) and Cityscapes.ignore_index == 255


def test_train_ids_are_taken_where_they_are_there(tree: Path) -> None:
    write_frame(tree, "val", "lindau_000000_000019", np.array([[18, 0], [255, 3]]), "labelTrainIds")
    Image.new("RGB", (2, 2)).save(tree / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png")
    assert Cityscapes("val", tree)[0][1].tolist() == [[18, 0], [255, 3]]


def test_root_may_be_the_parent(tree: Path) -> None:
    tree.rename(tree.with_name("cityscapes"))
    assert len(Cityscapes("val", tree.parent)) == 1


def test_an_id_that_is_no_label(tree: Path) -> None:
    write_frame(tree, "train", "ulm_000000_000019", np.full((2, 17), 40))
    with pytest.raises(InputError, match=r"labelIds\.png holds the labels \[40\]: expected 0, 1, .* 34 pixels have 40"):
        Cityscapes("train", tree)


def test_train_ids_out_of_range(tree: Path) -> None:
    write_frame(tree, "val", "lindau_000000_000019", np.full((2, 17), 19), "labelTrainIds")
    with pytest.raises(InputError, match=r"labelTrainIds\.png holds the labels \[19\]: expected 0\.\.18, 255 for void"):
        Cityscapes("val", tree)


def test_missing_mask(tree: Path) -> None:
    (tree / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(InputError, match=r"lindau_000000_000019_gtFine_labelIds\.png is missing for picture lindau"):
        Cityscapes("val", tree)


def test_one_frame_in_two_splits(tree: Path) -> None:
    write_frame(tree, "val", "ulm_000000_000019", np.zeros((2, 17)))
    with pytest.raises(InputError, match="splits train and val share pictures, 1 in all, such as ulm_000000_000019"):
        Cityscapes("train", tree)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train split was not found in .*leftImg8bit_trainvaltest\.zip and gtFine"):
        Cityscapes("train", tmp_path)
    with pytest.raises(InputError, match="split 'test' of Cityscapes is unknown: .* test has no labels"):
        Cityscapes("test", tmp_path)
