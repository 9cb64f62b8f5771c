"""Scoring a dataset image by image, alone and shared among processes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seglearn.boundaries import boundary_counts
from seglearn.calibration import calibration_counts
from seglearn.data import StreetScenes
from seglearn.inference import evaluate, measure, predict
from seglearn.metrics import confusion_matrix
from seglearn.training.device import measure_together, start_fabric


@pytest.fixture
def dataset() -> StreetScenes:
    return StreetScenes("val", size=(45, 60), length=5)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 11, 3, padding=1), nn.Dropout(0.5))


MEASURES = {
    "matrix": lambda logits, guess, label: confusion_matrix(guess, label, 11, 11),
    "boundary": lambda logits, guess, label: boundary_counts(guess, label, 11, 11),
    "calibration": lambda logits, guess, label: calibration_counts(logits, label, 11),
}


def test_measures_are_of_each_image_and_add_up_to_what_evaluate_says(dataset: StreetScenes, net: nn.Module) -> None:
    counts = measure(net, dataset, MEASURES)
    assert {name: tuple(each.shape) for name, each in counts.items()} == {
        "matrix": (5, 11, 11),
        "boundary": (5, 11, 4),
        "calibration": (5, 15, 3),
    }
    assert torch.equal(counts["matrix"].sum(0), evaluate(net, dataset))
    net.eval()
    image, label = dataset[3]
    assert torch.equal(counts["matrix"][3], confusion_matrix(predict(net, image), label, 11, 11))


def test_the_model_gets_back_the_modes_it_had(dataset: StreetScenes, net: nn.Module) -> None:
    net[0].eval()  # a frozen part
    measure(net, dataset, MEASURES)
    assert net.training and net[1].training and not net[0].training


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_shares_of_processes_are_put_back_in_order(
    processes: int, dataset: StreetScenes, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7 processes and 5 images two have none. Real processes: test_cli."""
    whole = measure(net, dataset, MEASURES)
    shares = [measure(net, dataset, MEASURES, rank, processes) for rank in range(processes)]
    assert sum(len(share.get("matrix", ())) for share in shares) == 5

    def gather(into: list[Any], own: dict[str, Tensor]) -> None:
        into[:] = shares

    fabric = start_fabric("32-true")
    monkeypatch.setattr(type(fabric), "world_size", processes)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    together = measure_together(fabric, net, dataset, MEASURES)
    assert together.keys() == whole.keys()
    assert all(torch.equal(together[name], each) for name, each in whole.items())
