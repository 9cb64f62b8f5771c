"""A folder of your own: its layouts, its kinds of masks, and what is said about a broken one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seglearn import data
from seglearn.data import Folder
from seglearn.data.files import read_image
from seglearn.errors import InputError
from seglearn.training.recipe import Recipe

EXPORT = Path(__file__).parent / "labelme_export"
LABEL = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
COLOURS = {0: (10, 20, 30), 1: (40, 50, 60), 2: (70, 80, 90), 255: (0, 0, 0)}
TABLE = "sky 10 20 30\npotted plant 40 50 60\nroad 70 80 90\nvoid 0 0 0\n"


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def palette_mask(label: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    mask = Image.new("P", label.shape[::-1])
    mask.putdata(label.flatten().tolist())
    mask.putpalette([value for index in range(256) for value in colours.get(index, (1, 1, 1))])
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures with grey masks, in lists, the names with and without extension."""
    root = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for index in range(5):
        image = rng.integers(0, 256, (2, 4, 3), np.uint8)
        save(root / "images" / f"frame {index}.{'jpg' if index % 2 else 'png'}", image)
        save(root / "masks" / f"frame {index}.png", LABEL)
    (root / "classes.txt").write_text("# mine\nsky\npotted plant\n\nroad\n")
    (root / "train.txt").write_text("frame 0.png\nframe 1.jpg\nframe 2\n")
    (root / "val.txt").write_text("images/frame 3.jpg\nframe 4\n")
    return root


def test_splits_by_list(folder: Path) -> None:
    train, val = Folder(folder, "train"), data.create("folder", "val", folder)
    assert train.ids == ["frame 0", "frame 1", "frame 2"] and val.ids == ["frame 3", "frame 4"]
    assert train.classes == ("sky", "potted plant", "road") and train.ignore_index == 255
    assert "by lists" in train.splitting
    image, label = val[0]
    assert image.shape == (3, 2, 4) and image.dtype == label.dtype == torch.uint8
    assert np.array_equal(label, LABEL)


def test_splits_by_folder(folder: Path) -> None:
    """One name may be in two folders: cameras number from 1 in each. Lists are then not looked at."""
    for part in ("images", "masks"):
        files = [path.rename(path.with_suffix(".kept")) for path in (folder / part).iterdir()]
        for split, number in (("train", 4), ("val", 2)):
            (folder / part / split).mkdir()
            for file in sorted(files)[:number]:
                shutil.copy(file, folder / part / split / f"{file.stem}.png")
    assert Folder.splits(folder) == ["train", "val"]
    assert len(Folder(folder, "train")) == 4 and len(Folder(folder, "val")) == 2
    assert Folder(folder, "val").ids == ["frame 0", "frame 1"]
    assert Folder(folder, "val").splitting.startswith("by folders")


def test_splits_by_ratio_are_the_same_for_the_same_names(folder: Path, tmp_path: Path) -> None:
    for name in ("train.txt", "val.txt"):
        (folder / name).unlink()
    train, val = Folder(folder, "train"), Folder(folder, "val")
    assert len(train) == 4 and len(val) == 1 and not set(train.ids) & set(val.ids)
    # by `printf 'frame 0' | sha256sum` and so on: 40db, 56f5, 6ad5, 5c95, c6e7
    assert val.ids == ["frame 0"]
    for name in ("frame 0.png", "frame 1.jpg"):
        (folder / "images" / name).unlink()
    assert (val := Folder(folder, "val")).ids == ["frame 3"]
    assert Folder(folder.rename(tmp_path / "moved"), "val").ids == val.ids
    assert "one in 5 for val by the hash of its name" in val.splitting


@pytest.mark.parametrize("kind", ["grey", "palette", "colours", "palette of colours", "RGBA"])
def test_kinds_of_masks(folder: Path, kind: str) -> None:
    """The same labels in every kind; in "palette of colours" the indices are numbered as a program liked."""
    if kind in ("grey", "palette"):
        mask = Image.fromarray(LABEL) if kind == "grey" else palette_mask(LABEL, COLOURS)
    else:
        (folder / "classes.txt").write_text(TABLE)
        rgb = np.array([COLOURS[label] for label in LABEL.flatten().tolist()], np.uint8).reshape(2, 4, 3)
        mask = Image.fromarray(rgb)
        if kind == "RGBA":
            mask.putalpha(200)
        if kind == "palette of colours":
            shuffled = {0: COLOURS[2], 1: COLOURS[255], 2: COLOURS[0], 255: COLOURS[1]}
            index = {colour: value for value, colour in shuffled.items()}
            mask = palette_mask(np.vectorize(lambda v: index[COLOURS[v]])(LABEL), shuffled)
    for index in range(5):
        mask.save(folder / "masks" / f"frame {index}.png")
    dataset = Folder(folder)
    assert np.array_equal(dataset[1][1], LABEL)
    if kind == "colours":
        assert dataset.palette == ((10, 20, 30), (40, 50, 60), (70, 80, 90))


def test_colour_table_leaves_grey_masks_alone(folder: Path) -> None:
    (folder / "classes.txt").write_text(TABLE)
    assert np.array_equal(Folder(folder)[0][1], LABEL)


def test_binary_masks_by_their_two_greys(folder: Path) -> None:
    (folder / "classes.txt").write_text("background 0 0 0\nobject 255 255 255\n")
    for index in range(5):
        save(folder / "masks" / f"frame {index}.png", np.where(LABEL == 1, 255, 0).astype(np.uint8))
    assert np.array_equal(Folder(folder)[0][1], LABEL == 1)


def test_several_colours_of_one_class(folder: Path) -> None:
    (folder / "classes.txt").write_text("sky 10 20 30\nroad 40 50 60\nroad 70 80 90\nvoid 0 0 0\n")
    rgb = np.array([COLOURS[label] for label in LABEL.flatten().tolist()], np.uint8).reshape(2, 4, 3)
    for index in range(5):
        save(folder / "masks" / f"frame {index}.png", rgb)
    assert np.array_equal(Folder(folder)[0][1], np.where(LABEL == 2, 1, LABEL))


def test_export_of_labelme_loads_as_it_is() -> None:
    """`labelme_export` was written by labelme's own script; its numbers are those of labelme's .npy files."""
    train, val = data.create("folder", "train", EXPORT), data.create("folder", "val", EXPORT)
    assert len(train) + len(val) == 3 and train.classes == ("_background_", "square", "potted plant")
    for dataset in (train, val):
        for index, name in enumerate(dataset.ids):
            written = np.load(EXPORT / "SegmentationClass" / f"{name}.npy")
            assert np.array_equal(dataset[index][1], np.where(written == -1, 255, written))
    assert train.palette[:2] == ((0, 0, 0), (128, 0, 0))


def test_newer_labelme_and_voc_lists(tmp_path: Path) -> None:
    """Newer versions put the PNGs into SegmentationClass; lists are VOC's; `__ignore__` may head the names."""
    root = tmp_path / "export"
    shutil.copytree(EXPORT / "JPEGImages", root / "JPEGImages")
    shutil.copytree(EXPORT / "SegmentationClassPNG", root / "SegmentationClass")
    (root / "class_names.txt").write_text("__ignore__\n_background_\nsquare\npotted plant")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("scene_0\nscene_2\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("scene_1\n")
    dataset = Folder(root, "train")
    assert dataset.ids == ["scene_0", "scene_2"] and dataset.num_classes == 3
    assert dataset[0][1].flatten().bincount(minlength=256)[[255, 0, 1, 2]].tolist() == [72, 496, 80, 120]


def test_usable_from_a_recipe(folder: Path) -> None:
    Recipe(data="folder", root=str(folder)).check()
    with pytest.raises(InputError, match="'folder' has no root: write `root: PATH`"):
        data.create("folder", "train")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode(folder: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    (folder / "images" / "frame 0.png").unlink()
    Image.new("RGB", (4, 2), (255, 255, 255)).convert(mode).save(folder / "images" / f"frame 0.{suffix}")
    assert Folder(folder)[0][0].unique().tolist() == [255]


def test_picture_is_turned_as_its_exif_tag_says(tmp_path: Path) -> None:
    """Telephones store pictures lying on the side, and annotation tools show (and label) them upright."""
    picture = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "picture.jpg", exif=exif)
    assert read_image(tmp_path / "picture.jpg").shape == (3, 4, 2)


def grey(value: int) -> Callable[[Path], None]:
    return lambda root: save(root / "masks" / "frame 1.png", np.where(LABEL == 1, value, LABEL).astype(np.uint8))


def binary(root: Path) -> None:
    for index in range(5):
        save(root / "masks" / f"frame {index}.png", np.where(LABEL == 1, 255, 0).astype(np.uint8))


def colours(*changes: tuple[int, int, int]) -> Callable[[Path], None]:
    def breaks(root: Path) -> None:
        (root / "classes.txt").write_text(TABLE)
        rgb = np.full((2, 4, 3), (10, 20, 30), np.uint8)
        rgb[1, : len(changes)] = changes
        save(root / "masks" / "frame 1.png", rgb)

    return breaks


def jpeg_mask(root: Path) -> None:
    (root / "classes.txt").write_text(TABLE)
    (root / "masks" / "frame 1.png").unlink()
    save(root / "masks" / "frame 1.jpg", np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8))


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None  # type: ignore[func-returns-value]


def same_name(root: Path) -> None:
    save(root / "images" / "frame 1.png", np.zeros((2, 4, 3), np.uint8))


def picture(name: str, image: Image.Image) -> Callable[[Path], None]:
    return lambda root: image.save(root / name)


BROKEN = [
    (grey(3), r"frame 1\.png holds the labels \[3\]: expected 0\.\.2, 255 for void, but 2 pixels have 3; correct"),
    (grey(254), r"frame 1\.png holds the labels \[254\]"),
    (binary, r"masks of train .* hold only 0 and 255, .*binary mask\?.*`sky 0 0 0` and `potted plant 255 255 255`"),
    (colours((9, 9, 9), (9, 9, 9), (8, 8, 8)), r"\(9, 9, 9\) at 2 pixels and 1 more colours \(3 pixels in all\)"),
    (jpeg_mask, r"frame 1\.jpg holds the colour .* \(was the mask saved as JPEG, or resized with interpolation\?"),
    (picture("masks/frame 1.png", Image.new("RGB", (4, 2))), r"has mode RGB: expected .* list its colours in classes"),
    (picture("masks/frame 1.png", Image.new("I;16", (4, 2))), r"has mode I;16: expected 8-bit grey"),
    (picture("masks/frame 1.tif", Image.new("F", (4, 2))), r"frame 1\.png and frame 1\.tif have one name"),
    (lambda root: (root / "masks/frame 2.png").unlink(), r"mask .*frame 2\.png is missing for picture frame 2\.png"),
    (lambda root: (root / "images" / "frame 2.png").unlink(), r"frame 2 is listed but is not there"),
    (lambda root: (root / "masks" / "frame 1.png").write_bytes(b"P"), r"frame 1\.png cannot be decoded"),
    (same_name, r"frame 1\.jpg and frame 1\.png have one name.*: rename one"),
    (write("val.txt", "frame 3\nframe 1.jpg\n"), r"splits train and val share pictures, 1 in all, such as frame 1"),
    (write("train.txt", "frame 1\nframe 1.jpg\n"), r"train\.txt lists frame 1 twice"),
    (write("train.txt", "\n"), r"no picture is listed for the train split of folder"),
    (lambda root: (root / "train.txt").unlink(), r"split 'train' was not found in .*: it has val, by lists"),
    (lambda root: (root / "classes.txt").unlink(), r"has no classes\.txt: write one, a class a line"),
    (write("classes.txt", "# nothing\n"), r"lists 0 classes: expected 1 to 254"),
    (write("classes.txt", "sky\nsky\n"), r"classes\.txt, line 2, names 'sky' again"),
    (write("classes.txt", "sky 1 2 3\nroad\n"), r"gives no colour for 'road' but for others"),
    (write("classes.txt", "sky 1 2 256\n"), r"line 1, has the colour \(1, 2, 256\): each value must be 0 to 255"),
    (write("classes.txt", "sky 1 2 3\nroad 1 2 3\n"), r"colour \(1, 2, 3\) to 'sky' and 'road'"),
    (lambda root: shutil.rmtree(root / "masks"), r"has neither images/ and masks/ nor JPEGImages/"),
    (shutil.rmtree, r"the data folder .*mine is not there"),
]


@pytest.mark.parametrize(("breaks", "sentence"), BROKEN)
def test_what_is_wrong_is_said_when_it_is_loaded(folder: Path, breaks: Callable[[Path], object], sentence: str) -> None:
    Folder(folder)  # as it was, it loads
    breaks(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        Folder(folder)
    assert "\n" not in str(caught.value)


BROKEN_ITEMS = [
    (
        picture("images/frame 0.png", Image.new("RGB", (4, 3))),
        r"frame 0\.png is 3x4 but its mask is 2x4 \(height x width\)",
    ),
    (
        picture("images/frame 0.png", Image.new("RGB", (2, 4))),
        r"is 4x2 but its mask is 2x4 \(height x width\), one turned against the other",
    ),
    (picture("images/frame 0.png", Image.new("I;16", (4, 2))), r"has mode I;16: expected 8 bits a channel, so rescale"),
    (lambda root: (root / "images" / "frame 0.png").write_bytes(b""), r"frame 0\.png cannot be decoded.*damaged"),
]


@pytest.mark.parametrize(("breaks", "sentence"), BROKEN_ITEMS)
def test_what_is_wrong_with_a_picture_is_said_when_it_is_read(
    folder: Path, breaks: Callable[[Path], object], sentence: str
) -> None:
    """Loading does not open pictures: that would be as slow as the first epoch."""
    breaks(folder)
    dataset = Folder(folder)
    with pytest.raises(InputError, match=sentence):
        dataset[0]


def test_every_mask_is_looked_at_in_a_set_of_ordinary_size(folder: Path) -> None:
    """Not only the first ones: the wrong label is in one mask of 300."""
    for index in range(300):
        save(folder / "images" / f"more {index}.png", np.zeros((2, 4, 3), np.uint8))
        save(folder / "masks" / f"more {index}.png", LABEL)
    (folder / "train.txt").write_text("".join(f"more {index}\n" for index in range(300)))
    Folder(folder)
    save(folder / "masks" / "more 211.png", np.full((2, 4), 7, np.uint8))
    with pytest.raises(InputError, match=r"more 211\.png holds the labels \[7\]"):
        Folder(folder)
