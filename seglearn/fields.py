"""Receptive fields: which pixels a score can depend on, and which it does depend on.

The theoretical field follows from kernels, strides and dilations alone. The effective one is measured: most of what
a deep net sees at the border of its field hardly counts (Luo et al. 2016, arXiv 1701.04128). Chapter:
`book/ideas/receptive_fields`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seglearn.errors import InputError
from seglearn.tracing import Operation, Trace, Value, trace

SIDES = (1024, 8192)  # images to try, until the field lies within one


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that one cell of a map can depend on: the smallest rectangle around them.

    Attributes:
        size: its height and width in pixels; where cells differ, as after an upsampling, that of the largest in the
            middle of the image. With `whole_image`, that of the image it was computed for.
        stride: pixels from one cell's field to the next one's, down and right; 0 if all see the same.
        whole_image: it reaches the borders of any image, as after a global pooling.
    """

    size: tuple[int, int]
    stride: tuple[float, float]
    whole_image: bool


def receptive_field(model: nn.Module, size: tuple[int, int] | None = None, layer: str | None = None) -> ReceptiveField:
    """The theoretical receptive field of a model's output, or of one of its layers.

    Follows, for each row and each column of each map, the interval of the image's rows or columns it depends on.
    Nothing is computed with weights, so that a model of any size takes a moment.

    Args:
        model: maps images `[1, 3, H, W]` to a tensor; it is used in evaluation mode and stays as it is.
        size: height and width of the image; None takes one that is large enough, of up to 8192 pixels a side.
        layer: path of a submodule, such as "fc7" or "backbone.layer4", whose output is meant.

    Raises:
        InputError: no such layer, or an operation that is not known here.
    """
    sizes = [size] if size is not None else [(side, side) for side in SIDES]
    for height, width in sizes:
        run = trace(model, (height, width))
        spans = _follow(run)[_target(model, run, layer)]
        found = ReceptiveField(
            (spans[0].length(), spans[1].length()),
            (spans[0].step(), spans[1].step()),
            spans[0].reaches(height) or spans[1].reaches(width),
        )
        if not found.whole_image:
            break
    return found


def _target(model: nn.Module, run: Trace, layer: str | None) -> Value:
    if layer is None:
        return run.output
    if layer not in run.outputs:
        raise InputError(
            f"{layer!r} is no layer that ran and returned a tensor: use a name of {type(model).__name__}."
            f"named_modules(), for example {', '.join([path for path in run.outputs if path][-4:])}."
        )
    return run.outputs[layer]


@dataclass(frozen=True)
class _Span:
    """What the cells along one axis of a map depend on.

    Attributes:
        first: for each cell the first row (or column) of the image, int `[cells]`.
        last: for each cell the last one; below `first` where a cell depends on nothing, such as padding.
        axis: which axis of the tensor the cells lie along, counted from the end; 0 if the image's axis is summed up,
            so that there is one cell, which holds for all elements.
    """

    first: np.ndarray
    last: np.ndarray
    axis: int

    def _middle(self) -> slice:
        cells = len(self.first)
        return slice(3 * cells // 8, max(5 * cells // 8, 3 * cells // 8 + 1))

    def length(self) -> int:
        """Rows in the largest interval in the middle."""
        return max(0, int((self.last - self.first)[self._middle()].max()) + 1)

    def step(self) -> float:
        """Rows from one cell's interval to the next one's, in the middle."""
        first = self.first[self._middle()]
        steps = len(first) - 1
        steps -= steps % 64 if steps >= 64 else 0  # upsampled maps repeat their steps
        return (int(first[steps]) - int(first[0])) / steps if steps else 0.0

    def reaches(self, length: int) -> bool:
        """Whether an interval in the middle ends at a border of the image: a larger one may show more of it."""
        middle = self._middle()
        return bool((self.first[middle] <= 0).any() or (self.last[middle] >= length - 1).any())

    def whole(self) -> _Span:
        """One interval around them all, for a result in which the axis is summed up."""
        return _Span(self.first.min(keepdims=True), self.last.max(keepdims=True), 0)


NOTHING = np.iinfo(np.int64).max // 4  # `first` of an empty interval; `last` is its negative
_Spans = tuple[_Span, _Span]


def _follow(run: Trace) -> dict[Value, _Spans]:
    """The spans of every value that depends on the image."""
    height, width = run.image.shape[-2:]
    rows, columns = np.arange(height), np.arange(width)
    spans: dict[Value, _Spans] = {run.image: (_Span(rows, rows, -2), _Span(columns, columns, -1))}
    windows: dict[Value, Operation] = {}  # the pooling that an index belongs to
    for operation in run.operations:
        sources = [value for value in operation.inputs() if value in spans]
        if not sources:
            continue
        if operation.name == "max_pool2d_with_indices":
            windows[operation.outputs[1]] = operation
        maps = operation.outputs[:1] if "batch_norm" in operation.name else operation.outputs  # the rest: statistics
        for output in maps:
            spans[output] = (
                _through(operation, output, [(value, spans[value][0]) for value in sources], windows),
                _through(operation, output, [(value, spans[value][1]) for value in sources], windows),
            )
    return spans


def _through(
    operation: Operation,
    output: Value,
    sources: Sequence[tuple[Value, _Span]],
    windows: Mapping[Value, Operation],
) -> _Span:
    """The span of an operation's output along one of the image's axes."""
    name, (value, span) = operation.name, sources[0]
    if operation.pointwise or name in UNMOVED:
        return _union([span for _, span in sources], output)
    if name == "cat":
        return _concatenated(operation, output, dict(sources))
    if name in ("mm", "bmm", "addmm"):  # takes everything to be mixed with everything
        return _union([span.whole() for _, span in sources], output)
    if name not in RULES:
        raise InputError(f"The receptive field through {name} is not known here: name an earlier `layer`.")
    if span.axis == 0:
        return span
    if name == "max_unpool2d":  # spreads its map and the window that its index was found in
        span = _union([span for _, span in sources], value)
        operation = windows[operation.arguments["indices"]]
    return RULES[name](operation, value, output, span)


UNMOVED = {"native_batch_norm", "_native_batch_norm_legit_no_training", "clone", "_to_copy", "alias", "detach", "copy"}


def _union(spans: Sequence[_Span], output: Value) -> _Span:
    """Element by element, one cell standing for all where an axis is summed up or broadcast."""
    axes = {span.axis for span in spans if span.axis}
    if len(axes) > 1:
        spans, axes = [span.whole() for span in spans], set()
    cells = output.shape[max(axes)] if axes else 1
    first = np.min([np.broadcast_to(span.first, cells) for span in spans], 0)
    last = np.max([np.broadcast_to(span.last, cells) for span in spans], 0)
    return _Span(first, last, max(axes, default=0))


def _concatenated(operation: Operation, output: Value, known: Mapping[Value, _Span]) -> _Span:
    along = operation.arguments.get("dim", 0) % len(output.shape) - len(output.shape)
    if {span.axis for span in known.values()} != {along}:
        return _union(list(known.values()), output)
    nothing = {part: np.full(part.shape[along], NOTHING) for part in operation.arguments["tensors"]}
    first = [known[part].first if part in known else nothing[part] for part in nothing]
    last = [known[part].last if part in known else -nothing[part] for part in nothing]
    return _Span(np.concatenate(first), np.concatenate(last), along)


# ---- rules for one map: (operation, what it reads, what it returns, span of what it reads) -> span of the result


def _along(operation: Operation, key: str, axis: int) -> int:
    """An argument with an entry for each of the last axes (or one for all), on one axis. Strides follow kernels."""
    entries = operation.arguments[key] or operation.arguments["kernel_size"]
    return int(entries[axis] if len(entries) > 1 else entries[0])


def _convolution(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    kernel = operation.arguments["weight"].shape[span.axis]
    stride, padding, dilation = (_along(operation, key, span.axis) for key in ("stride", "padding", "dilation"))
    rule = _spread if operation.arguments["transposed"] else _windowed
    return rule(span, output.shape[span.axis], kernel, stride, padding, dilation)


def _pooling(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    if -span.axis > len(operation.arguments["kernel_size"]):
        return span
    kernel, stride, padding = (_along(operation, key, span.axis) for key in ("kernel_size", "stride", "padding"))
    dilation = _along(operation, "dilation", span.axis) if "dilation" in operation.arguments else 1
    return _windowed(span, output.shape[span.axis], kernel, stride, padding, dilation)


def _unpooling(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    keys = ("kernel_size", "stride", "padding", "dilation")  # those of the pooling
    return _spread(span, output.shape[span.axis], *(_along(operation, key, span.axis) for key in keys))


def _adaptive_pooling(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    cells, after = len(span.first), output.shape[span.axis]
    bins = [slice(cell * cells // after, -(-(cell + 1) * cells // after)) for cell in range(after)]
    first = np.array([span.first[part].min() for part in bins])
    return _Span(first, np.array([span.last[part].max() for part in bins]), span.axis)


def _nearest(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    cells, after = len(span.first), output.shape[span.axis]
    shift = 0.5 if "exact" in operation.name else 0.0
    return _gathered(span, np.floor((np.arange(after) + shift) * cells / after).astype(int))


def _interpolation(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    cells, after = len(span.first), output.shape[span.axis]
    if operation.arguments["align_corners"]:
        at = np.arange(after) * ((cells - 1) / max(after - 1, 1))
    else:
        at = (np.arange(after) + 0.5) * cells / after - 0.5
    at = at.round(9)  # a pixel exactly on a cell reads that cell alone
    below, above = np.floor(at).astype(int), np.ceil(at).astype(int)
    return _gathered(span, below, above, *([below - 1, above + 1] if "bicubic" in operation.name else []))


def _slice(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    get, after = operation.arguments, output.shape[span.axis]
    if get["dim"] % len(value.shape) - len(value.shape) != span.axis:
        return span
    start = slice(get["start"], None).indices(len(span.first))[0]
    return _gathered(span, start + np.arange(after) * get.get("step", 1))


def _index_select(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    if operation.arguments["dim"] % len(value.shape) - len(value.shape) != span.axis:
        return span
    index = operation.arguments["index"].constant
    return span.whole() if index is None else _gathered(span, index.numpy())


def _padding(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    """Constants depend on nothing; a mirrored or repeated border on the cells it shows."""
    pad = operation.arguments["pad" if operation.name == "constant_pad_nd" else "padding"]
    entry = 2 * (-span.axis - 1)  # the last axis first, each before and after
    before, after, cells = pad[entry] if entry < len(pad) else 0, output.shape[span.axis], len(span.first)
    if operation.name == "constant_pad_nd":
        return _windowed(span, after, 1, 1, before, 1)
    at = np.arange(after) - before
    if operation.name == "reflection_pad2d":
        at = np.where(at >= cells, 2 * (cells - 1) - at, np.abs(at))
    return _gathered(span, at)


def _reduction(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    rank = len(value.shape)
    dims = operation.arguments["dim"]
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = {dim % rank - rank for dim in dims}
    if span.axis in dims:
        return span.whole()
    gone = sum(dim > span.axis for dim in dims) if len(output.shape) < rank else 0
    return _Span(span.first, span.last, span.axis + gone)


def _view(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    """The axis is where as many cells lie as many elements apart; merged with another one, it is summed up."""
    inner = math.prod(value.shape[span.axis :][1:])
    for axis in range(-len(output.shape), 0):
        if output.shape[axis] == value.shape[span.axis] and math.prod(output.shape[axis:][1:]) == inner:
            return _Span(span.first, span.last, axis)
    return span.whole()


def _permutation(operation: Operation, value: Value, output: Value, span: _Span) -> _Span:
    get, rank = operation.arguments, len(value.shape)
    order = list(range(rank))
    if operation.name == "permute":
        order = [dim % rank for dim in get["dims"]]
    else:
        one, two = get.get("dim0", 0), get.get("dim1", 1)
        order[one], order[two] = order[two], order[one]
    return _Span(span.first, span.last, order.index(rank + span.axis) - rank)


RULES: dict[str, Callable[[Operation, Value, Value, _Span], _Span]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "max_pool3d_with_indices", "avg_pool3d"), _pooling),
    "max_unpool2d": _unpooling,
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pooling),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), _nearest),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d"), _interpolation),
    "slice": _slice,
    "index_select": _index_select,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _padding),
    **dict.fromkeys(("mean", "sum", "amax", "_softmax", "_log_softmax"), _reduction),
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze"), _view),
    "expand": lambda operation, value, output, span: _union([span], output),
    **dict.fromkeys(("permute", "transpose", "t"), _permutation),
}


def _windowed(span: _Span, after: int, kernel: int, stride: int, padding: int, dilation: int) -> _Span:
    """Cell i reads `kernel` cells from `stride * i - padding` on, `dilation` apart; beyond the map lies nothing."""
    first, last = np.full(after, NOTHING), np.full(after, -NOTHING)
    for tap in range(kernel):
        at = np.arange(after) * stride - padding + tap * dilation
        inside = (at >= 0) & (at < len(span.first))
        first[inside] = np.minimum(first[inside], span.first[at[inside]])
        last[inside] = np.maximum(last[inside], span.last[at[inside]])
    return _Span(first, last, span.axis)


def _spread(span: _Span, after: int, kernel: int, stride: int, padding: int, dilation: int) -> _Span:
    """The other way round: cell i is read by `kernel` cells of the result."""
    first, last = np.full(after, NOTHING), np.full(after, -NOTHING)
    for tap in range(kernel):
        at = np.arange(len(span.first)) * stride - padding + tap * dilation
        inside = (at >= 0) & (at < after)
        np.minimum.at(first, at[inside], span.first[inside])
        np.maximum.at(last, at[inside], span.last[inside])
    return _Span(first, last, span.axis)


def _gathered(span: _Span, *cells: np.ndarray) -> _Span:
    """Cell i reads the i-th of each of `cells`; those beyond the border are the outermost."""
    at = np.stack(cells).clip(0, len(span.first) - 1)
    return _Span(span.first[at].min(0), span.last[at].max(0), span.axis)


@dataclass(frozen=True)
class EffectiveField:
    """How much each pixel counts for one cell.

    Attributes:
        weight: mean absolute gradient, the largest 1: float `[H, W]`.
        diameter: side of a square of as many pixels as weigh at least 4.55 % of the largest (Luo et al. 2016, section
            3; they refer to the centre's). If the weights are Gaussian, these lie within 2.5 standard deviations.
    """

    weight: np.ndarray
    diameter: float


def effective_receptive_field(
    model: nn.Module,
    images: Tensor | tuple[int, int] = (256, 256),
    samples: int = 8,
    layer: str | None = None,
    seed: int = 0,
) -> EffectiveField:
    """The gradient of a cell in the middle with respect to the image, its absolute value averaged over images.

    The cell's channels are summed with random signs, other ones for each image.

    Args:
        model: as for `receptive_field`; it is used in evaluation mode and put back.
        images: normalised images `[N, 3, H, W]`, or height and width of random ones, normally distributed.
        samples: how many random images.
        layer: path of a submodule whose output is meant, instead of the logits.
        seed: of the random images and signs.

    Raises:
        InputError: no such layer, or a gradient of zero, as from score layers that start at zero.
    """
    from seglearn.inference import evaluation_mode

    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters(), torch.empty(0))
    if not isinstance(images, Tensor):
        images = torch.randn(samples, 3, *images, generator=generator)
    captured: list[Tensor] = []
    handle = None
    if layer is not None:
        try:
            module = model.get_submodule(layer)
        except AttributeError as error:
            raise InputError(f"{layer!r} is no layer of {type(model).__name__}: see its named_modules().") from error
        handle = module.register_forward_hook(lambda module, arguments, output: captured.append(output))
    total = torch.zeros(images.shape[-2:])
    try:
        with evaluation_mode(model):
            for image in images:
                image = image[None].to(parameter.device).requires_grad_()
                output = model(image)
                output = captured.pop() if layer is not None else output
                captured.clear()
                cell = output[0, :, output.shape[2] // 2, output.shape[3] // 2]
                signs = torch.randint(0, 2, cell.shape, generator=generator).to(cell) * 2 - 1
                (gradient,) = torch.autograd.grad((cell * signs).sum(), image)
                total += gradient[0].abs().sum(0).float().cpu()
    finally:
        if handle is not None:
            handle.remove()
    if not total.any():
        raise InputError(
            "The cell depends on no pixel: score layers of a fresh model may start at zero. Train it, or name a layer."
        )
    weight = (total / total.max()).numpy()
    return EffectiveField(weight, math.sqrt(np.count_nonzero(weight >= 0.0455)))
