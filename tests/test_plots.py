"""Pictures of labels: the right colour at the right pixel, and figures that a notebook shows."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from seglearn import plots
from seglearn.data.camvid import CLASSES, PALETTE


def test_colorize_gives_each_class_its_colour_and_void_another() -> None:
    label = torch.tensor([[0, 3], [10, 11]], dtype=torch.uint8)
    colours = plots.colorize(label, PALETTE, ignore_color=(1, 2, 3))
    assert colours.dtype == np.uint8
    assert [tuple(pixel) for pixel in colours.reshape(-1, 3)] == [PALETTE[0], PALETTE[3], PALETTE[10], (1, 2, 3)]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_overlay_mixes_picture_and_colours(alpha: float) -> None:
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    laid = plots.overlay(image, torch.full((2, 2), 3), PALETTE, alpha)
    assert np.allclose(laid[1, 1], (1 - alpha) * 100 + alpha * np.array(PALETTE[3]), atol=0.5)


def test_sheet_lays_picture_truth_and_prediction_side_by_side() -> None:
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    truth, prediction = torch.zeros(10, 20), torch.ones(10, 20)
    sheet = np.array(plots.sheet([(image, truth, prediction)] * 2, PALETTE, gap=2))
    assert sheet.shape == (22, 64, 3)
    for row in (0, 12):
        assert [tuple(sheet[row + 5, column]) for column in (5, 27, 49)] == [(0, 0, 0), PALETTE[0], PALETTE[1]]


def figures() -> dict[str, Figure]:
    label = torch.zeros(6, 8, dtype=torch.uint8)
    curve = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val_miou": 0.3}]
    return {
        "show": plots.show({"a": torch.zeros(3, 6, 8, dtype=torch.uint8), "b": label, "c": label}, PALETTE, columns=2),
        "legend": plots.legend(CLASSES, PALETTE),
        "learning_curve": plots.learning_curve({"one": {"curve": curve}, "two": {"curve": curve}}),
        "class_bars": plots.class_bars({"one": [0.5] * 11, "two": [0.1] * 11}, CLASSES),
        "scatter": plots.scatter({"one": (1, 2), "two": (1.01, 2), "three": (1, 2.01)}, "x", "y"),
    }


@pytest.mark.parametrize("name", figures())
def test_a_notebook_shows_each_figure_once(name: str) -> None:
    import matplotlib.pyplot as plt

    figure = figures()[name]
    assert figure.axes  # IPython prints a figure without axes as text
    assert not plt.get_fignums()  # an open one would be shown a second time at the end of the cell


def test_what_figures_say() -> None:
    drawn = figures()
    assert [text.get_text() for text in drawn["legend"].legends[0].get_texts()] == list(CLASSES)
    assert [axis.get_title() for axis in drawn["show"].axes] == ["a", "b", "c", ""]
    assert drawn["learning_curve"].axes[0].lines[0].get_xydata().tolist() == [[2, 30]]
    assert {round(bar.get_width()) for bar in drawn["class_bars"].axes[0].patches} == {50, 10}


def test_names_of_dots_lie_clear_of_each_other() -> None:
    crowd = {f"a long name {n}": (1 + n / 100, 2 + n % 2 / 100) for n in range(8)} | {"afar": (3.0, 4.0)}
    figure = plots.scatter(crowd, "x", "y")
    axis = figure.axes[0]
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == len(crowd)
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0
        inside = [box.contains(*dot) for dot in axis.transData.transform(list(crowd.values()))]
        assert not any(inside)
        assert axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
