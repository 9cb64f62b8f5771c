"""Pictures of labels: colours, overlays, panels with a legend, sheets of predictions. And of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor

from seglearn.diagrams import architecture as architecture

Palette = Sequence[tuple[int, int, int]]


def to_array(image: Any) -> np.ndarray:
    """A picture as uint8 [H, W, 3], from a tensor [3, H, W], an array or a PIL image."""
    if isinstance(image, Tensor):
        return image.permute(1, 2, 0).cpu().numpy()
    return np.asarray(image)


def colorize(label: Any, palette: Palette, ignore_color: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A label map [H, W] in colours: uint8 [H, W, 3]; what is no class (void) gets `ignore_color`."""
    table = np.full((256, 3), ignore_color, np.uint8)
    table[: len(palette)] = palette
    return table[np.asarray(label).astype(np.uint8)]


def overlay(image: Any, label: Any, palette: Palette, alpha: float = 0.6) -> np.ndarray:
    """A picture with its label map laid over it, the colours at opacity `alpha`: uint8 [H, W, 3]."""
    return (to_array(image) * (1 - alpha) + colorize(label, palette) * alpha).round().astype(np.uint8)


def show(panels: Mapping[str, Any], palette: Palette | None = None, columns: int = 3, width: float = 7.5) -> Figure:
    """Panels in a grid, each under its title: pictures (`[3, H, W]` tensors, `[H, W, 3]` arrays) or label maps.

    A panel of two dimensions is a label map when a `palette` is given, else a grey map.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    first = next(iter(panels.values()))
    height, breadth = (first.shape[-2:] if isinstance(first, Tensor) else np.asarray(first).shape[:2])[:2]
    side = width / columns
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * (side * height / breadth + 0.35)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        array = to_array(panel) if getattr(panel, "ndim", 3) == 3 else np.asarray(panel)
        if array.ndim == 2 and palette is not None:
            array = colorize(array, palette)
        axis.imshow(array, cmap="viridis", interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    plt.close(figure)  # the caller shows it; otherwise a notebook would show it twice
    return figure


def legend(classes: Sequence[str], palette: Palette, columns: int = 4) -> Figure:
    """The classes and their colours in one strip."""
    rows = -(-len(classes) // columns)
    figure = plt.figure(figsize=(6.5, 0.26 * rows + 0.1))
    patches = [
        Patch(facecolor=tuple(np.divide(color, 255).tolist()), edgecolor="0.4", label=name)
        for name, color in zip(classes, palette, strict=True)
    ]
    figure.legend(handles=patches, ncols=columns, loc="center", frameon=False, fontsize=9)
    figure.add_axes((0, 0, 1, 1)).axis("off")  # a notebook shows no figure without axes
    plt.close(figure)
    return figure


def sheet(rows: Sequence[tuple[Any, Any, Any]], palette: Palette, gap: int = 4) -> Image.Image:
    """A contact sheet: in each row the picture, its true labels and the prediction, cut to the first one's size."""
    height, width = to_array(rows[0][0]).shape[:2]
    canvas = Image.new("RGB", (3 * width + 2 * gap, len(rows) * (height + gap) - gap), "white")
    for row, (image, label, prediction) in enumerate(rows):
        for column, array in enumerate((to_array(image), colorize(label, palette), colorize(prediction, palette))):
            canvas.paste(Image.fromarray(array[:height, :width]), (column * (width + gap), row * (height + gap)))
    return canvas


def learning_curve(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Val mIoU in percent against epochs, a line a run; `results` maps a name to what `result.json` holds."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for name, result in results.items():
        points = [(row["epoch"], 100 * row["val_miou"]) for row in result["curve"] if "val_miou" in row]
        axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
    axis.set(xlabel="epoch", ylabel="val mIoU (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.tight_layout()
    plt.close(figure)
    return figure


def class_bars(iou: Mapping[str, Sequence[float]], classes: Sequence[str]) -> Figure:
    """IoU in percent of every class, a bar a run; `iou` maps a run's name to one fraction a class."""
    figure, axis = plt.subplots(figsize=(6, 0.9 + 0.16 * (len(iou) + 1) * len(classes)))  # legible on a phone
    width = 0.8 / len(iou)
    for index, (name, values) in enumerate(iou.items()):
        place = np.arange(len(classes)) + (index - (len(iou) - 1) / 2) * width
        axis.barh(place, 100 * np.asarray(values), width, label=name)
    axis.set_yticks(range(len(classes)), classes)
    axis.invert_yaxis()  # the first class on top
    axis.set_xlabel("IoU (%)")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(iou), frameon=False)
    figure.tight_layout()
    plt.close(figure)
    return figure


def scatter(points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str) -> Figure:
    """A dot with its name for each (x, y); names lie clear of dots and each other, a line leads to those far off."""
    figure, axis = plt.subplots(figsize=(7, 5.2))
    x, y = (list(values) for values in zip(*points.values(), strict=True))
    axis.plot(x, y, "o", color="#4878a8")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    axis.margins(x=0.15, y=0.08)
    figure.tight_layout()
    dots = axis.transData.transform(np.column_stack([x, y]))
    taken = [Bbox.from_bounds(column - 5, row - 5, 10, 10) for column, row in dots]
    around = [(np.cos(angle), np.sin(angle)) for angle in np.pi * np.array([0, 1, 0.25, -0.25, 0.75, -0.75, 0.5, -0.5])]
    places = [(reach * right, reach * up) for reach in range(6, 120, 6) for right, up in around]
    for name, place in zip(points, zip(x, y, strict=True), strict=True):
        label = axis.annotate(name, place, (0, 0), textcoords="offset points", fontsize=8, va="center")
        for shift in places:
            label.set(position=shift, ha="left" if shift[0] > 1 else "right" if shift[0] < -1 else "center")
            box = label.get_window_extent()
            if not box.count_overlaps(taken) and axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1):
                break
        if np.hypot(*shift) > 12:
            axis.annotate("", place, shift, textcoords="offset points", arrowprops={"arrowstyle": "-", "color": "0.6"})
        taken.append(box)
    plt.close(figure)
    return figure
