"""StreetScenes: the same street for the same numbers, labels that fit, classes as frequent as on a street."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seglearn.data.scenes import StreetScenes
from seglearn.errors import InputError

# Bounds on every class's share over 50 scenes, in percent; the last is void.
SHARES = {
    "Sky": (14, 30),
    "Building": (12, 28),
    "Pole": (0.6, 2.2),
    "Road": (22, 36),
    "Pavement": (3, 9),
    "Tree": (6, 18),
    "SignSymbol": (0.4, 1.6),
    "Fence": (0.6, 3),
    "Car": (3, 10),
    "Pedestrian": (0.25, 1.2),
    "Bicyclist": (0.2, 1.2),
    "void": (1, 4),
}


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor]:
    """The first 50 scenes: pictures [50, 3, 180, 240] and labels [50, 180, 240]."""
    dataset = StreetScenes()
    images, labels = zip(*(dataset[index] for index in range(50)), strict=True)
    return torch.stack(images), torch.stack(labels)


def test_attributes_are_those_of_every_dataset() -> None:
    dataset = StreetScenes("val")
    assert (dataset.name, dataset.split) == ("scenes", "val")
    assert (dataset.num_classes, dataset.ignore_index) == (11, 11)
    assert len(dataset.classes) == len(dataset.palette) == 11
    assert dataset.ids[:2] == ["val_00000", "val_00001"] and len(dataset.ids) == len(dataset)
    assert [len(StreetScenes(split)) for split in ("train", "val", "test")] == [400, 100, 100]
    assert len(StreetScenes(length=7)) == len(list(StreetScenes(size=(16, 16), length=7))) == 7


def test_scenes_are_the_same_in_any_order_instance_and_process() -> None:
    forward = [StreetScenes(length=4)[index] for index in range(4)]
    dataset = StreetScenes(length=400)
    backward = [dataset[index] for index in (3, 2, 1, 0)][::-1]
    loader = DataLoader(StreetScenes(length=4), batch_size=None, num_workers=1)
    elsewhere = [(image, label) for image, label in loader]
    for index in range(4):
        assert same(forward[index], backward[index]) and same(forward[index], elsewhere[index])
    assert same(StreetScenes(length=4)[-1], forward[3])


def test_splits_seeds_and_indices_share_no_scene() -> None:
    sources = [StreetScenes(split, (48, 64), seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    labels = [source[index][1] for source in sources for index in (0, 1)]
    for index, label in enumerate(labels):
        assert not any(torch.equal(label, other) for other in labels[:index])


@pytest.mark.parametrize("size", [(180, 240), (97, 131), (16, 16), (33, 200), (200, 33), (360, 480)])
def test_every_size_gives_bytes_of_that_size(size: tuple[int, int]) -> None:
    dataset = StreetScenes("test", size)
    for index in range(3):
        image, label = dataset[index]
        assert image.dtype == label.dtype == torch.uint8
        assert image.shape == (3, *size) and label.shape == size
        assert image.is_contiguous() and label.is_contiguous()
        assert label.max() <= 11


def test_a_scene_is_the_same_street_at_two_sizes() -> None:
    small, large = StreetScenes(size=(180, 240)), StreetScenes(size=(360, 480))
    for index in range(4):
        (image, label), (image_large, label_large) = small[index], large[index]
        known = (label != 11) & (label_large[::2, ::2] != 11)
        assert (label == label_large[::2, ::2])[known].float().mean() > 0.97
        reduced = torch.nn.functional.avg_pool2d(image_large[None].float(), 2)[0]
        assert (reduced - image).abs().mean() < 8
    tiny, other = StreetScenes(size=(45, 60)), StreetScenes(size=(90, 120))
    for index in range(20):
        assert (tiny[index][1] == other[index][1][::2, ::2]).float().mean() > 0.85


def test_classes_are_as_frequent_as_on_a_street(scenes: tuple[Tensor, Tensor]) -> None:
    labels = scenes[1]
    share = labels.flatten().bincount(minlength=12) / labels.numel() * 100
    for value, (name, (low, high)) in zip(share.tolist(), SHARES.items(), strict=True):
        assert low < value < high, f"{name}: {value:.2f} %"
    for index in range(11):
        present = (labels == index).flatten(1).any(1).float().mean()
        assert present > (0.45 if index == 10 else 1 / 3), f"{tuple(SHARES)[index]}: in {present:.0%}"


def test_colour_alone_does_not_tell_the_class(scenes: tuple[Tensor, Tensor]) -> None:
    """The best rule from 512 colours to classes, fitted to these very pictures, errs on every fifth pixel."""
    known = scenes[1] != 11
    r, g, b = (scenes[0][:, channel][known].long() // 32 for channel in range(3))
    pairs = ((r * 64 + g * 8 + b) * 11 + scenes[1][known]).bincount(minlength=512 * 11).view(512, 11)
    assert 0.4 < pairs.max(1).values.sum() / pairs.sum() < 0.8


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="split 'dev' .* choose one of train, val, test"):
        StreetScenes("dev")
    with pytest.raises(InputError, match="at least 16"):
        StreetScenes(size=(180, 8))
    with pytest.raises(InputError, match="must not be negative"):
        StreetScenes(length=-1)
    with pytest.raises(InputError, match="must not be negative"):
        StreetScenes(seed=-1)
    for index in (3, -4):
        with pytest.raises(IndexError, match="has 3"):
            StreetScenes(length=3)[index]
