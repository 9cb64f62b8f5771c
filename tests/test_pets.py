"""Trees in the layout of the Oxford-IIIT Pets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seglearn import data
from seglearn.data import OxfordPets
from seglearn.data import pets as module
from seglearn.errors import InputError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """21 pictures of trainval (three of them every tenth) and two of test."""
    monkeypatch.setattr(module, "SPLITS", {"train": 18, "val": 3, "test": 2})
    folder = tmp_path / "oxford-iiit-pet"
    for part in ("images", "annotations/trimaps"):
        (folder / part).mkdir(parents=True)
    for name, count in (("trainval", 21), ("test", 2)):
        names = [f"{name}_Abyssinian_{index}" for index in range(count)]
        (folder / "annotations" / f"{name}.txt").write_text("".join(f"{each} 1 1 1\n" for each in names))
        for each in names:
            Image.new("RGB", (3, 2), "red").save(folder / "images" / f"{each}.jpg")
            trimap = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)
            Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{each}.png")
    return tmp_path


def test_the_releases_numbers() -> None:
    """3680 of trainval and 3669 of test, as TensorFlow Datasets' catalogue counts them."""
    assert module.SPLITS["train"] + module.SPLITS["val"] == 3680 and module.SPLITS["test"] == 3669


def test_trimaps_become_labels_and_the_band_is_void(tree: Path) -> None:
    dataset = data.create("pets", "train", tree)
    assert dataset[0][1].tolist() == [[1, 0, 255], [255, 0, 1]]
    assert dataset.classes == ("background", "pet") and dataset.num_classes == 2


def test_every_tenth_is_for_validation(tree: Path) -> None:
    train, val = OxfordPets("train", tree), OxfordPets("val", tree)
    assert [name.rsplit("_", 1)[1] for name in val.ids] == ["0", "10", "20"]
    assert not set(train.ids) & set(val.ids) and len(train) == 18
    assert len(OxfordPets("test", tree / "oxford-iiit-pet")) == 2


def test_another_list_is_refused(tree: Path) -> None:
    (tree / "oxford-iiit-pet/annotations/test.txt").write_text("test_Abyssinian_0 1 1 1\n")
    with pytest.raises(InputError, match=r"test has 1 images by .*test\.txt but must have 2"):
        OxfordPets("test", tree)


def test_a_value_that_no_trimap_has(tree: Path) -> None:
    Image.new("L", (3, 2), 0).save(tree / "oxford-iiit-pet/annotations/trimaps/test_Abyssinian_1.png")
    with pytest.raises(InputError, match=r"holds the labels \[0\]: expected 1, 2, 3, but 6 pixels have 0"):
        OxfordPets("test", tree)


def test_not_there_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"was not found in .*oxford-iiit-pet.*seglearn data fetch pets"):
        OxfordPets("train", tmp_path)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(module, "OxfordIIITPet", unreachable)
    with pytest.raises(
        InputError, match=r"\(Name or service not known\): put images\.tar\.gz and annotations\.tar\.gz"
    ):
        module.fetch_pets(tmp_path)
    with pytest.raises(InputError, match="split 'trainval' of OxfordPets is unknown: choose one of train, val, test"):
        OxfordPets("trainval")
