"""VOC 2012 and SBD, as trees of a few small files in the originals' layout."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from seglearn import data
from seglearn.data import VOC2012
from seglearn.data import voc as module
from seglearn.errors import InputError

TRAIN, VAL = ["2007_000032", "2007_000039"], ["2007_000033", "2008_000001", "2008_000002"]
SBD_TRAIN = ["2007_000032", "2008_000001", "2010_000001", "2010_000002"]  # one of VOC's train, one of its val, two more
SBD_VAL = ["2008_000002", "2011_000001"]
NUMBERS = {"train": 2, "val": 3, "trainval": 5, "trainaug": 5}


def write_voc(root: Path) -> Path:
    """VOC's tree, with a palette whose colours are not the indices; SBD's as its archive has it."""
    voc = root / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (voc / part).mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    rng = np.random.default_rng(0)
    for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
    for name in TRAIN + VAL:
        label = rng.choice([0, 1, 20, 255], (8, 10)).astype(np.uint8)
        mask = Image.fromarray(label).convert("P")
        mask.putdata(label.flatten().tolist())
        mask.putpalette([value for colour in module.voc_palette(256) for value in colour])
        mask.save(voc / "SegmentationClass" / f"{name}.png")
    sbd = root / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("\n".join(SBD_TRAIN))
    (sbd / "val.txt").write_text("\n".join(SBD_VAL))
    for name in SBD_TRAIN + SBD_VAL:
        label = np.full((8, 10), 5, np.uint8)
        label[0, 0] = 0
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label, "CategoriesPresent": [5]}})
    return voc


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SPLITS", NUMBERS)
    monkeypatch.setenv("SEGLEARN_DATA", str(tmp_path))
    return write_voc(tmp_path)


def test_numbers_of_the_papers() -> None:
    """1464 and 1449 (VOC), 10582 (DeepLab), and SBD's part of it, 6820 of its train and 2298 of its val."""
    assert module.SPLITS == {"train": 1464, "val": 1449, "trainval": 1464 + 1449, "trainaug": 1464 + 6820 + 2298}


def test_palette_is_the_published_one() -> None:
    published = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    published += [(128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128)]
    published += [(64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)]
    assert list(VOC2012.palette) == published
    assert len(VOC2012.classes) == 21 and VOC2012.classes[15] == "person"


def test_palette_masks_are_read_as_indices(voc: Path) -> None:
    dataset = VOC2012("val")
    image, label = dataset[1]
    assert image.shape == (3, 8, 10) and image.dtype == label.dtype == torch.uint8
    assert np.array_equal(label, np.array(Image.open(voc / "SegmentationClass" / "2008_000001.png")))
    assert set(label.unique().tolist()) <= {0, 1, 20, 255}
    assert (dataset.num_classes, dataset.ignore_index, dataset.ids) == (21, 255, VAL)


def test_trainaug_is_train_and_what_sbd_adds_outside_val(voc: Path) -> None:
    dataset = VOC2012("trainaug")
    assert dataset.ids == [*TRAIN, "2010_000001", "2010_000002", "2011_000001"]
    # VOC's own mask, the finer one, where there is one
    assert [mask.suffix for _, mask in dataset.pairs] == [".png", ".png", ".mat", ".mat", ".mat"]
    label = dataset[4][1]
    assert label.dtype == torch.uint8 and label[0, 0] == 0 and label.flatten()[1:].unique().tolist() == [5]


def test_names_in_a_recipe(voc: Path) -> None:
    assert len(data.create("voc2012", "train")) == 2
    assert len(data.create("voc2012aug", "train")) == 5
    assert data.create("voc2012aug", "val").ids == VAL
    assert VOC2012.splits() == ["trainaug", "val"]


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_root_may_be_any_level(voc: Path, levels: int) -> None:
    root = [voc, *voc.parents][levels]
    assert VOC2012("trainaug", root).ids == VOC2012("trainaug").ids


def test_number_of_images_is_checked(voc: Path) -> None:
    (voc.parent.parent / "benchmark_RELEASE/dataset/val.txt").write_text("2008_000002\n")
    with pytest.raises(InputError, match=r"trainaug has 4 images in .* but must have 5: a list .* fetch it anew"):
        VOC2012("trainaug")


def test_train_that_holds_pictures_of_val_is_refused(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2008_000001\n")
    with pytest.raises(InputError, match=r"splits train and val share pictures, 1 in all, such as 2008_000001"):
        VOC2012("train")


def test_not_there_says_which_file_goes_where(tmp_path: Path, voc: Path) -> None:
    with pytest.raises(InputError) as caught:
        VOC2012("train", tmp_path / "empty")
    message = str(caught.value)
    assert "seglearn data fetch voc2012" in message
    assert f"VOCtrainval_11-May-2012.tar into {tmp_path / 'empty'} by hand" in message
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"fetch sbd`, or put benchmark\.tgz into {tmp_path} by hand"):
        VOC2012("trainaug")


@pytest.mark.parametrize("content", [b"not MATLAB", b""])
def test_broken_sbd_mask(voc: Path, content: bytes) -> None:
    (voc.parent.parent / "benchmark_RELEASE/dataset/cls/2010_000002.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"2010_000002\.mat is not one of SBD's"):
        VOC2012("trainaug")


def test_unknown_split() -> None:
    with pytest.raises(InputError, match="split 'test' of VOC2012 is unknown: choose one of train, trainaug"):
        VOC2012("test")


def test_fetch_tries_the_next_mirror_and_verifies(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first mirror is down, the second has another file, the third the right one."""
    archive = tmp_path / "original.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(voc.parent, "VOCdevkit")
    asked = []

    def download(url: str, output_file: str, pooch_object: object) -> None:
        asked.append(url)
        if len(asked) == 1:
            raise ConnectionError("Name or service not known")
        Path(output_file).write_bytes(b"a page that says sorry" if len(asked) == 2 else archive.read_bytes())

    monkeypatch.setattr(module.pooch.core, "choose_downloader", lambda url, progressbar=False: download)
    monkeypatch.setattr(module, "VOC_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    home = tmp_path / "new"
    assert module.fetch_voc(home) == home / "VOCdevkit" / "VOC2012"
    assert asked == list(module.VOC_MIRRORS)
    assert VOC2012("val", home).ids == VAL

    asked.clear()
    module.fetch_voc(home)  # the archive is there, as if put by hand: nothing is asked for
    assert not asked


def test_fetch_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(module.pooch, "retrieve", unreachable)
    with pytest.raises(InputError) as caught:
        module.fetch_voc(tmp_path)
    message = str(caught.value)
    assert message.count("Name or service not known") == len(module.VOC_MIRRORS) >= 2
    assert f"put it into {tmp_path} (its MD5 sum is 6cd6e144f989b92b3379bac3b3de84fd)" in message
