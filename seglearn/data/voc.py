"""PASCAL VOC 2012, and its training set enlarged by the Semantic Boundaries Dataset (SBD).

Photographs of about 500x375 in 20 classes and background. Label 255 marks the objects' outlines and difficult regions;
it is left out of loss and scores. M. Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective",
IJCV 2015. SBD outlines more of the same photographs: B. Hariharan et al., "Semantic Contours from Inverse Detectors",
ICCV 2011. Its outlines are coarser and it knows no void.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from seglearn.data.files import Colour, FileDataset, brief, check_disjoint, data_root, first_with
from seglearn.errors import InputError

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# The papers' numbers: 1464 + 1449 have VOC's own masks. Of SBD's 11355, 9118 are in neither (Chen et al., DeepLab,
# ICLR 2015, section 5): together 10582. Whoever has more trains on pictures of val.
SPLITS = {"train": 1464, "trainaug": 10582, "val": 1449, "trainval": 2913}

VOC_TAR = "VOCtrainval_11-May-2012.tar"
VOC_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
# The host of the challenge is often down; the sum makes it safe to ask others for the same file.
VOC_MIRRORS = (
    DATASET_YEAR_DICT["2012"]["url"],
    f"http://d2l-data.s3-accelerate.amazonaws.com/{VOC_TAR}",  # of the book "Dive into Deep Learning"
    f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_TAR}",
)
SBD_TAR = SBDataset.filename
SBD_MD5 = SBDataset.md5
SBD_MIRRORS = (SBDataset.url,)


def voc_palette(number: int) -> tuple[Colour, ...]:
    """VOC's colours of the first `number` labels: the label's bits, dealt to red, green and blue from the top."""

    def channel(label: int, first: int) -> int:
        return sum((label >> 3 * bit + first & 1) << 7 - bit for bit in range(3))

    return tuple((channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(number))


class VOC2012(FileDataset):
    """One split of VOC 2012.

    Args:
        split: `train` (1464 images), `val` (1449), `trainval` (both), or `trainaug` (10582: `train`, and what SBD
            outlines besides, its pictures of `val` taken out).
        root: the folder that holds `VOCdevkit/` (and, for `trainaug`, SBD's `benchmark_RELEASE/`). Default: the
            environment variable `SEGLEARN_DATA`, then a cache folder of this user.
        preflight: see `FileDataset`.

    An item is `(image uint8 [3, H, W], label uint8 [H, W])`, labels 0..20 and 255 for void.

    At load the split must have exactly its number of images and, `trainval` aside, none of `val`'s: numbers "on val"
    of 85 and 90 % have come from training on it.

    Raises:
        InputError: unknown split; split not found; another number of images; and what `FileDataset` refuses.
    """

    name = "voc2012"
    classes = CLASSES
    palette = voc_palette(len(CLASSES))

    def __init__(self, split: str = "train", root: str | os.PathLike[str] | None = None, preflight: bool = True):
        if split not in SPLITS:
            raise InputError(f"split {split!r} of VOC2012 is unknown: choose one of {', '.join(SPLITS)}.")
        self.folder = voc_folder(root)
        lists = self.folder / "ImageSets" / "Segmentation"
        if not (lists / "train.txt").is_file() or not (lists / "val.txt").is_file():
            raise InputError(
                f"VOC2012 was not found in {self.folder} (no ImageSets/Segmentation/train.txt): run "
                f"`seglearn data fetch voc2012`, or put {VOC_TAR} into {voc_home(root)} by hand and unpack it there."
            )
        train, val = read_names(lists / "train.txt"), read_names(lists / "val.txt")
        names = {"train": train, "val": val, "trainval": sorted(train + val), "trainaug": train}[split]
        masks = self.folder / "SegmentationClass"
        pairs = [(name, masks / f"{name}.png") for name in names]
        if split == "trainaug":
            sbd = sbd_folder(root)
            more = sorted(set(sbd_names(sbd, root)).difference(train, val))
            pairs += [(name, sbd / "cls" / f"{name}.mat") for name in more]
        if len(pairs) != SPLITS[split]:
            raise InputError(
                f"VOC2012 {split} has {len(pairs)} images in {self.folder} but must have {SPLITS[split]}: a list in "
                f"{lists} or of SBD is not the original one, so fetch it anew."
            )
        check_disjoint({"train": train, "val": val})
        super().__init__(split, [(self.folder / "JPEGImages" / f"{name}.jpg", mask) for name, mask in pairs], preflight)

    def read_label(self, path: Path) -> Tensor:
        """The label map of VOC's PNG or of SBD's MATLAB file: uint8 [H, W]."""
        return read_sbd(path) if path.suffix == ".mat" else super().read_label(path)

    @staticmethod
    def splits(root: str | os.PathLike[str] | None = None) -> list[str]:
        """The splits that are there and share no picture."""
        return ["trainaug" if (sbd_folder(root) / "cls").is_dir() else "train", "val"]


def voc_home(root: str | os.PathLike[str] | None) -> Path:
    """The folder in which the archive is to be unpacked."""
    folder = voc_folder(root)
    return folder.parent.parent if folder.parent.name == "VOCdevkit" else folder


def voc_folder(root: str | os.PathLike[str] | None) -> Path:
    """The folder `VOC2012` that `root`, else `SEGLEARN_DATA`, else this user's cache stands for."""
    base = data_root(root)
    return first_with("ImageSets", [base / "VOCdevkit" / "VOC2012", base / "VOC2012", base])


def sbd_folder(root: str | os.PathLike[str] | None) -> Path:
    """SBD's folder with `cls/`, `train.txt` and `val.txt`: as its archive has it, or beside VOC as `SBD/`."""
    bases = {data_root(root): None, voc_home(root): None, voc_folder(root).parent: None}
    return first_with("cls", [base / name for base in bases for name in ("benchmark_RELEASE/dataset", "SBD", "sbd")])


def read_names(path: Path) -> list[str]:
    """One name a line, sorted, since the order of a list means nothing."""
    return sorted(path.read_text().split())


def sbd_names(sbd: Path, root: str | os.PathLike[str] | None) -> list[str]:
    """The 8498 + 2857 pictures that SBD outlines, train and val together.

    Raises:
        InputError: its lists are not there.
    """
    lists = [sbd / "train.txt", sbd / "val.txt"]
    if not all(path.is_file() for path in lists):
        raise InputError(
            f"SBD, which trainaug needs, was not found in {sbd} (no train.txt and val.txt): run "
            f"`seglearn data fetch sbd`, or put {SBD_TAR} into {voc_home(root)} by hand and unpack it there."
        )
    return [name for path in lists for name in read_names(path)]


def read_sbd(path: Path) -> Tensor:
    """The label map in one of SBD's MATLAB files: uint8 [H, W], 0 is background.

    Raises:
        InputError: the file cannot be read or is not SBD's.
    """
    from scipy.io import loadmat  # half a second, which only trainaug needs to wait

    try:
        label = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0], np.uint8)
    except Exception as error:  # scipy hands on whatever its parser stumbles over
        raise InputError(f"mask {path} is not one of SBD's cls/*.mat ({brief(error)}): replace it.") from error
    if label.max() >= len(CLASSES):
        raise InputError(f"mask {path} holds the label {label.max()}: expected 0..{len(CLASSES) - 1}; replace it.")
    return torch.from_numpy(label)


def fetch_voc(root: str | os.PathLike[str] | None = None) -> Path:
    """Download VOC 2012 (2.0 GB) from the first mirror that has it, and unpack it; returns the folder `VOC2012`."""
    fetch_archive(VOC_MIRRORS, f"md5:{VOC_MD5}", VOC_TAR, voc_home(root))
    return voc_folder(root)


def fetch_sbd(root: str | os.PathLike[str] | None = None) -> Path:
    """Download SBD (1.4 GB) and unpack it beside VOC; returns its folder."""
    fetch_archive(SBD_MIRRORS, f"md5:{SBD_MD5}", SBD_TAR, voc_home(root))
    return sbd_folder(root)


def fetch_archive(mirrors: tuple[str, ...], checksum: str, name: str, home: Path) -> None:
    """Fetch an archive into `home` and unpack it there. One that was put there by hand is verified and used.

    Raises:
        InputError: no mirror gave a file with this checksum; says where to put it by hand.
    """
    reasons = []
    for mirror in mirrors:
        try:
            archive = pooch.retrieve(mirror, checksum, fname=name, path=home, progressbar=True)
            break
        except Exception as error:  # pooch hands on whatever its HTTP library raises
            reasons.append(f"{mirror.split('/')[2]}: {brief(error)}")
    else:
        raise InputError(
            f"{name} could not be fetched ({'; '.join(reasons)}): get it elsewhere, put it into {home} (its MD5 sum is "
            f"{checksum[4:]}), and run this again."
        )
    with tarfile.open(archive) as tar:
        tar.extractall(home, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]
