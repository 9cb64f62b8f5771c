"""Oxford-IIIT Pets: photographs of cats and dogs of 37 breeds, and where in them the animal is.

O. M. Parkhi et al., "Cats and Dogs", CVPR 2012. https://www.robots.ox.ac.uk/~vgg/data/pets/
"""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from seglearn.data.files import FileDataset, brief, data_root, first_with
from seglearn.errors import InputError

SPLITS = {"train": 3312, "val": 368, "test": 3669}
SITE = "https://www.robots.ox.ac.uk/~vgg/data/pets/"


class OxfordPets(FileDataset):
    """One split of the Oxford-IIIT Pets: animal or background.

    The files are trimaps: 1 inside the animal, 2 background, 3 "not classified", a band along the outline. Here 2
    becomes class 0, 1 becomes class 1, and the band is void (255), as VOC's outlines are. Making it a third class
    would ask the network to predict where annotators were not sure.

    Args:
        split: `train` (3312 images), `val` (368: every tenth of the release's trainval, which goes breed by breed) or
            `test` (3669).
        root: the folder that holds `oxford-iiit-pet/`, or is it. Default: the environment variable `SEGLEARN_DATA`,
            then a cache folder of this user.
        preflight: see `FileDataset`.

    An item is `(image uint8 [3, H, W], label uint8 [H, W])`, labels 0, 1 and 255 for void.

    Raises:
        InputError: unknown split; split not found; another number of images; and what `FileDataset` refuses.
    """

    name = "pets"
    classes = ("background", "pet")
    palette = ((0, 0, 0), (128, 0, 0))
    values = {2: 0, 1: 1, 3: 255}

    def __init__(self, split: str = "train", root: str | os.PathLike[str] | None = None, preflight: bool = True):
        if split not in SPLITS:
            raise InputError(f"split {split!r} of OxfordPets is unknown: choose one of {', '.join(SPLITS)}.")
        self.folder = folder_of(root)
        listed = self.folder / "annotations" / ("test.txt" if split == "test" else "trainval.txt")
        if not listed.is_file():
            raise InputError(
                f"OxfordPets was not found in {self.folder} (no annotations/{listed.name}): run `seglearn data fetch "
                f"pets`, or unpack images.tar.gz and annotations.tar.gz of {SITE} there."
            )
        names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        if split != "test":
            names = [name for index, name in enumerate(names) if (index % 10 == 0) == (split == "val")]
        if len(names) != SPLITS[split]:
            raise InputError(
                f"OxfordPets {split} has {len(names)} images by {listed} but must have {SPLITS[split]}: "
                "the list is not the original one, so fetch it anew."
            )
        images, masks = self.folder / "images", self.folder / "annotations" / "trimaps"
        super().__init__(split, [(images / f"{name}.jpg", masks / f"{name}.png") for name in names], preflight)


def folder_of(root: str | os.PathLike[str] | None) -> Path:
    """The folder `oxford-iiit-pet` that `root`, else `SEGLEARN_DATA`, else this user's cache stands for."""
    base = data_root(root)
    return first_with("annotations", [base / "oxford-iiit-pet", base])


def fetch_pets(root: str | os.PathLike[str] | None = None) -> Path:
    """Download pictures and trimaps (0.8 GB) and unpack them; returns the folder `oxford-iiit-pet`.

    Raises:
        InputError: the host did not give them; says where to put the files by hand.
    """
    folder = folder_of(root)
    try:
        OxfordIIITPet(str(folder.parent), download=True)
    except Exception as error:  # whatever torchvision's HTTP code raises
        raise InputError(
            f"OxfordPets could not be fetched ({brief(error)}): put images.tar.gz and annotations.tar.gz of {SITE} "
            f"into {folder} and unpack them there."
        ) from error
    return folder
