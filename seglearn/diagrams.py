"""A model drawn as papers draw it: boxes of maps, left to right in the order of the run, a row for each resolution.

The drawing follows from `seglearn.tracing` alone. Layers of a kind and size that follow each other make one box with
a count; a module that ends in a sum, such as a residual block, is one box under its own name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path
from torch import nn

from seglearn.tracing import Operation, Trace, Value, trace

COLORS = {
    "image": "#8c8c8c",
    "convolution": "#4878a8",
    "dilated convolution": "#7b5aa6",
    "pooling": "#d1495b",
    "upsampling": "#3a8f5c",
    "unpooling": "#9bc53d",
    "concatenation": "#edae49",
    "sum": "#f26d21",
    "maximum": "#a5561e",
    "class scores": "#17a2a2",
}
BLOCK_COLORS = ("#8fb4d9", "#5d6fb8", "#b9c7de", "#39507f")  # for modules that are one box, in order of appearance
THIN = {"pooling", "upsampling", "unpooling", "concatenation", "sum", "maximum"}
JOINS = {"add": "sum", "maximum": "maximum", "cat": "concatenation"}


@dataclass(eq=False)
class Box:
    """One or several layers in a row that give maps of the same shape.

    Attributes:
        kind: a key of `COLORS`, or the name of a module drawn as one.
        channels: channels of the maps.
        size: height and width of the last one.
        stride: pixels of the image for one cell of the map.
        inputs: where the maps come from.
        count: how many layers the box stands for.
        note: text above it, such as a dilation.
        pooled: a few cells stand for the whole image, on a branch of its own.
        again: its weights, or those before it, have been used before in the same run.
        passes: for a join how many runs of the same layers meet here.
        branches: for a join of parallel branches the boxes of each branch.
        last: it holds the model's output.
        x: left end in the drawing, in inches.
        width: its width there.
        room: how far its texts reach beyond it on each side.
    """

    kind: str
    channels: int
    size: tuple[int, int]
    stride: float
    inputs: list[Box]
    count: int = 1
    note: str = ""
    pooled: bool = False
    again: bool = False
    passes: int = 1
    branches: list[list[Box]] = field(default_factory=list)
    last: bool = False
    x: float = 0.0
    width: float = 0.0
    room: float = 0.0


def boxes(model: nn.Module, size: tuple[int, int] = (360, 480)) -> list[Box]:
    """The boxes of a model's diagram in the order of the run, the image first."""
    run = trace(model, size)
    found = _grouped(_merged(_from(run, model)))
    found[-1].last = True
    return found


def _from(run: Trace, model: nn.Module) -> list[Box]:
    """A box for each layer that has one."""
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    image = Box("image", 3, _size(run.image), 1.0, [])
    owner: dict[Value, Box] = {run.image: image}
    found = [image]
    ends = _blocks(run)  # last operation of each module drawn as one, and the module's first operation and path
    starts = {first: (last, path) for last, (first, path) in ends.items()}
    weights: set[Value] = set()
    index = 0
    while index < len(run.operations):
        operation = run.operations[index]
        if index in starts:
            last, path = starts[index]
            inside = run.operations[index : last + 1]
            source = next(owner[v] for o in inside for v in o.inputs() if v in owner)
            output = run.operations[last].outputs[0]
            factor = source.size[0] / output.shape[-2]
            note = _rate(o for o in inside if o.name == "convolution")
            stride = source.stride * _power(factor)
            box = Box(_words(classes[path]), output.shape[1], _size(output), stride, [source], note=note)
            box.again = source.again
            owner |= {value: box for o in inside for value in o.outputs}
            found.append(box)
            index = last + 1
            continue
        index += 1
        sources = list(dict.fromkeys(owner[value] for value in operation.inputs() if value in owner))
        if not sources or not operation.outputs:
            continue
        new = _box(operation, sources, run)
        if new is not None:
            weight = operation.arguments.get("weight")
            new.again = weight in weights or all(part.again for part in sources)
            if isinstance(weight, Value):
                weights.add(weight)
            found.append(new)
        owner |= {value: new or sources[0] for value in operation.outputs}
    for box in found:
        if box.kind in JOINS.values():
            _simplify(box, _consumers(found))
    return _ancestors(owner[run.output])


def _simplify(join: Box, consumers: dict[Box, list[Box]]) -> None:
    """A sum of sums is one sum. What a net computes a second time, from an image of another scale, is not drawn."""
    operands: list[Box] = []
    for part in join.inputs:
        nested = part.kind == join.kind != "concatenation" and len(consumers[part]) == 1
        operands += part.inputs if nested else [part]
        join.passes += part.passes - 1 if nested else 0
    once = [part for part in operands if not part.again]
    join.inputs = once or operands
    join.passes += len(operands) - len(join.inputs)
    if join.passes > 1:
        join.note = f"{join.passes} scales"


def _box(operation: Operation, sources: list[Box], run: Trace) -> Box | None:
    """The box of one operation; None for what changes no map's meaning, such as a norm or a crop."""
    output = operation.outputs[0]
    if len(output.shape) < 4:
        return None
    source, channels, size = sources[0], output.shape[1], _size(output)
    get, name = operation.arguments, operation.name
    if name == "convolution" and get["transposed"]:
        return Box("upsampling", channels, size, source.stride / get["stride"][0], sources)
    if name == "convolution":
        stride = source.stride * get["stride"][0]
        rate = _rate([operation])
        kind = "dilated convolution" if rate else "convolution"
        if channels == run.output.shape[1] and source.channels != channels:
            kind = "class scores"
        return Box(kind, channels, size, stride, [source], note=rate, pooled=source.pooled)
    if name.startswith(("max_pool2d", "avg_pool2d")) and max(get["kernel_size"]) > 1:
        return Box("pooling", channels, size, source.stride * (get["stride"] or get["kernel_size"])[0], sources)
    if "adaptive" in name or (name == "mean" and output.shape[-2:] == (1, 1)):
        return Box("pooling", channels, size, source.stride, sources, note=f"{size[0]}×{size[1]}", pooled=True)
    if name.startswith(("upsample", "_upsample")) and (source.pooled or _size(output) != source.size):
        stride = source.stride if source.pooled else source.stride * _power(source.size[0] / size[0])
        return Box("upsampling", channels, size, stride, sources)
    if name.endswith("view") and size != source.size:  # averages by a product with a matrix
        if not source.pooled:
            return Box("pooling", channels, size, source.stride, sources, note=f"{size[0]}×{size[1]}", pooled=True)
        source.size, source.note = size, f"{size[0]}×{size[1]}"
    if name == "max_unpool2d":
        return Box("unpooling", channels, size, source.stride / 2, sources)
    if name in JOINS and len(sources) > 1:
        return Box(JOINS[name], channels, size, source.stride, sources)
    return None


def _size(value: Value) -> tuple[int, int]:
    return (value.shape[-2], value.shape[-1])


def _power(factor: float) -> float:
    """The nearest power of two: sides are rounded up or padded, strides are not."""
    return float(2.0 ** round(math.log2(factor)))


def _rate(convolutions: Iterable[Operation]) -> str:
    """The dilation as a note, "" for none."""
    rate = max((max(o.arguments["dilation"]) for o in convolutions), default=1)
    return f"r{rate}" if rate > 1 else ""


def _words(name: str) -> str:
    """`ResidualConvUnit` -> "residual conv unit"; an abbreviation stays one."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() if re.search("[a-z]", name) else name


def _blocks(run: Trace) -> dict[int, tuple[int, str]]:
    """Modules to be drawn as one box, by their last operation: the first operation and the path.

    They add maps up, take one map in and give one out, and at most two layers read what comes in: one with more has
    parallel branches, which are worth seeing.
    """
    operations = run.operations
    users: dict[Value, list[int]] = {}
    made: dict[Value, int] = {run.image: -1}
    for index, operation in enumerate(operations):
        for value in operation.inputs():
            users.setdefault(value, []).append(index)
        made |= {value: index for value in operation.outputs}
    users.setdefault(run.output, []).append(len(operations))
    found: dict[int, tuple[int, str]] = {}
    end = -1
    for first, operation in enumerate(operations):
        if first <= end:
            continue
        parts = operation.module.split(".") if operation.module else []
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            last = first
            while last + 1 < len(operations) and f"{operations[last + 1].module}.".startswith(f"{path}."):
                last += 1
            if first and f"{operations[first - 1].module}.".startswith(f"{path}."):
                continue
            if _is_block(operations[first : last + 1], path, first, users, made):
                found[last] = (first, path)
                end = last
                break
    return found


def _is_block(
    inside: Sequence[Operation], path: str, first: int, users: dict[Value, list[int]], made: dict[Value, int]
) -> bool:
    names = [operation.name for operation in inside]
    sums = [o for o in inside if o.name == "add" and o.module == path and len(o.inputs()) == 2]
    if not sums or "cat" in names or any("upsample" in n or "adaptive" in n or n == "mean" for n in names):
        return False
    last = first + len(inside) - 1
    entering = {value for o in inside for value in o.inputs() if value in made and made[value] < first}
    leaving = [v for o in inside for v in o.outputs if any(index > last for index in users.get(v, []))]
    if len(entering) != 1 or len(leaving) != 1 or leaving[0] not in inside[-1].outputs:
        return False
    # activations aside, how many layers read what comes in?
    same = set(entering)
    readers = 0
    for operation in inside:
        reads = [value for value in operation.inputs() if value in same]
        if reads and (operation.name == "convolution" or "pool" in operation.name):
            readers += 1
        elif reads and len(operation.inputs()) == 1:
            same |= set(operation.outputs)
    return readers <= 2


def _ancestors(box: Box) -> list[Box]:
    """A box and all it follows from, inputs first; of several inputs the one with the longest way behind it first."""
    depths: dict[Box, int] = {}
    order: dict[Box, None] = {}

    def depth(box: Box) -> int:
        if box not in depths:
            depths[box] = 1 + max((depth(part) for part in box.inputs), default=0)
        return depths[box]

    def visit(box: Box) -> None:
        if box not in order:
            main, *others = sorted(box.inputs, key=depth, reverse=True) or [box]
            if main.kind in ("upsampling", "unpooling") and others:  # what is on the skip stands before it
                visit(main.inputs[0])
                main, *others = *others, main
            for part in (main, *others):
                if part is not box:
                    visit(part)
            order[box] = None

    visit(box)
    return list(order)


def _consumers(found: Sequence[Box]) -> dict[Box, list[Box]]:
    consumers: dict[Box, list[Box]] = {box: [] for box in found}
    for box in found:
        for part in box.inputs:
            consumers[part].append(box)
    return consumers


def _merged(found: list[Box]) -> list[Box]:
    """Equal layers that follow each other become one box with a count."""
    found = _ancestors(found[-1])
    consumers = _consumers(found)
    kept: list[Box] = []
    for box in found:
        before = box.inputs[0] if box.inputs else None
        if (
            before is not None
            and len(box.inputs) == 1
            and len(consumers[before]) == 1
            and (box.kind, box.channels, box.stride, box.note)
            == (before.kind, before.channels, before.stride, before.note)
            and box.kind not in THIN
        ):
            before.count += box.count
            before.size = box.size
            for after in consumers[box]:
                after.inputs = [before if part is box else part for part in after.inputs]
            consumers[before] = consumers[box]
        else:
            kept.append(box)
    return kept


def _grouped(found: list[Box]) -> list[Box]:
    """Parallel branches from one map to a join go into the join, to be drawn above each other."""
    consumers = _consumers(found)
    hidden: set[Box] = set()
    for join in found:
        if join.kind not in JOINS.values():
            continue
        branches, forks = [], set()
        for part in join.inputs:
            branch: list[Box] = []
            while len(part.inputs) == 1 and len(consumers[part]) == 1:
                branch.insert(0, part)
                part = part.inputs[0]
            branches.append(branch)
            forks.add(part)
        inside = [box for branch in branches for box in branch]
        fork = forks.pop()
        if forks or any(box.stride != fork.stride for box in inside) or len(inside) > 20:
            continue
        if len(branches) > 2 or any(box.pooled for box in inside):
            join.branches, join.inputs = branches, [fork]
            hidden |= set(inside)
    return [box for box in found if box not in hidden]


# ---- drawing, in inches

GAP, FONT, WIDTH, LEFT = 0.09, 7, 7.5, 0.55
CHARACTER = 0.056  # width of a digit at this font size
LANE = 0.09
SCALES = [
    (False, 2.0),
    (False, 1.75),
    (False, 1.5),
    (False, 1.25),
    (False, 1.0),
    (True, 1.2),
    (True, 1.0),
    (True, 0.8),
    (True, 0.65),
    (True, 0.5),
]
BRANCH = 0.2


def _height(stride: float) -> float:
    return 0.8 * max(stride, 0.5) ** -0.4


def _breadth(box: Box, scale: float) -> float:
    if box.branches:
        inner = (sum(_breadth(part, scale) + 0.05 for part in branch) for branch in box.branches)
        texts = (CHARACTER * len(_caption(branch)) for branch in box.branches)
        return max(*inner, *texts) + 0.2 + 0.07
    count = CHARACTER * len(str(box.count)) + 0.09 if box.count > 1 else 0.0
    return 0.07 if box.kind in THIN else max(count, (0.06 + 0.024 * math.log2(box.channels + 1)) * scale)


def _caption(branch: Sequence[Box]) -> str:
    """What stands below a branch: its notes and its channels."""
    notes = [part.note for part in branch if part.note]
    channels = [str(part.channels) for part in branch if part.kind not in THIN]
    return ", ".join([*notes, *channels[-1:]])


def architecture(model: nn.Module, size: tuple[int, int] = (360, 480), title: str | None = None) -> Figure:
    """A diagram of a model, drawn from the shapes of one run without weights.

    Rows are resolutions, from the image's at the top; boxes are wider the more channels a map has (their number
    stands below), and higher the finer it is. "×3" in a box: three such layers; "r2" above it: dilation 2. Orange,
    curved lines are skip connections.

    Args:
        model: maps images `[1, 3, H, W]` to logits.
        size: height and width of the image.
        title: name of the model; None takes its class's.
    """
    found = boxes(model, size)
    for turned, scale in SCALES:
        if _place(found, turned, scale) <= WIDTH - LEFT - 0.1:
            break
    return _draw(found, title or type(model).__name__, model, size, turned, scale)


def _place(found: list[Box], turned: bool, scale: float) -> float:
    """Set each box's x and width: right of its inputs, and right of the box before it in its row."""
    ends: dict[float, float] = {}
    gap = GAP * scale
    for box in found:
        box.width = _breadth(box, scale)
        label = 0.13 if turned else CHARACTER * len(str(box.channels)) + 0.03
        texts = max(label if _labelled(box) else 0.0, CHARACTER * len(box.note) + 0.03)
        box.room = max(0.0, (texts - (0.07 if box.branches else box.width)) / 2)
        start = max([ends.get(box.stride, 0.0), *(part.x + part.width + part.room + gap for part in box.inputs)])
        box.x = start + (0.0 if box.branches else box.room)
        ends[box.stride] = box.x + box.width + box.room + gap
    return max(box.x + box.width for box in found)


def _labelled(box: Box) -> bool:
    return box.kind not in THIN or box.kind == "concatenation" or box.last


def _draw(found: list[Box], name: str, model: nn.Module, size: tuple[int, int], turned: bool, scale: float) -> Figure:
    rows = sorted({box.stride for box in found})
    skips = _skips(found)
    lanes = _lanes(skips)
    below = CHARACTER * max(len(str(box.channels)) for box in found) + 0.05 if turned else 0.16
    middle: dict[float, float] = {}
    bands: dict[float, tuple[float, float]] = {}
    y = 0.0
    for stride in rows:
        tall = max(_tall(box) for box in found if box.stride == stride)
        noted = 0.13 if any(box.note or box.branches for box in found if box.stride == stride) else 0.03
        above = noted + LANE * (1 + max((lanes[s] + 1 for s in skips if s[0].stride == stride), default=0)) - 0.05
        middle[stride] = y - above - tall / 2
        bands[stride] = (y - above - tall - below, y)
        y -= above + tall + below
    kinds = list(dict.fromkeys(kind for box in found for kind in _kinds(box)))
    columns = 5
    legend = 0.17 * -(-len(kinds) // columns) + 0.1
    height = -y + legend + 0.25
    figure = plt.figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0, legend / height, 1, (-y + 0.25) / height))
    axis.set(xlim=(-LEFT, WIDTH - LEFT), ylim=(y, 0.25))
    axis.axis("off")

    count = sum(p.numel() for p in model.parameters())
    parameters = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
    title = f"{name}, {parameters} parameters, image {size[0]}×{size[1]}"
    axis.text(-LEFT + 0.06, 0.08, title, fontsize=9, va="center")
    for index, stride in enumerate(rows):
        low, high = bands[stride]
        if index % 2 == 0:
            axis.add_patch(Rectangle((-LEFT, low), WIDTH, high - low, facecolor="#f3f3f1", edgecolor="none", zorder=0))
        name = f"1/{stride:g}" if stride > 1 else "1"
        sizes = Counter(box.size for box in found if box.stride == stride and box.kind not in THIN)
        sizes = sizes or Counter(box.size for box in found if box.stride == stride)
        most = sizes.most_common(1)[0][0] if sizes else None
        if most is not None and len(sizes) <= 2:
            name += f"\n{most[0]}×{most[1]}"
        axis.text(-LEFT + 0.06, middle[stride], name, fontsize=FONT, va="center", color="0.25")
    palette = COLORS | dict(zip((k for k in kinds if k not in COLORS), BLOCK_COLORS, strict=False))
    for box in found:
        _draw_box(axis, box, middle[box.stride], palette, turned, scale)
    for box in found:
        for part in box.inputs:
            if (part, box) in lanes:
                base = bands[part.stride][1] - 0.06 - LANE * lanes[part, box]
                _draw_skip(axis, part, box, middle, base)
            else:
                _draw_link(axis, part, box, middle)
    patches = [Patch(facecolor=palette[kind], label=kind) for kind in kinds]
    figure.legend(
        handles=patches,
        ncols=min(columns, len(kinds)),
        loc="lower center",
        frameon=False,
        fontsize=FONT + 1,
        handlelength=1,
        columnspacing=1.2,
        borderpad=0.1,
        labelspacing=0.2,
    )
    plt.close(figure)  # the caller shows it; otherwise a notebook would show it twice
    return figure


def _kinds(box: Box) -> list[str]:
    return [*(part.kind for branch in box.branches for part in branch), box.kind]


def _tall(box: Box) -> float:
    """Height of a box, or of all its branches."""
    return max(_height(box.stride), len(box.branches) * (BRANCH + 0.14) if box.branches else 0)


def _skips(found: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Links that another box is in the way of, or that leave their row after others have: drawn as curves."""
    skips = []
    for box in found:
        for part in box.inputs:
            between = [b for b in found if b.stride == part.stride and part.x < b.x < box.x and b is not box]
            if between:
                skips.append((part, box))
    return skips


def _lanes(skips: Sequence[tuple[Box, Box]]) -> dict[tuple[Box, Box], int]:
    """A lane above the row for each, so that no two lie over each other; 0 is the outermost."""
    lanes: dict[tuple[Box, Box], int] = {}
    for skip in sorted(skips, key=lambda s: s[0].x - s[1].x):
        taken = {
            lane
            for other, lane in lanes.items()
            if other[0].stride == skip[0].stride and other[0].x < skip[1].x and skip[0].x < other[1].x
        }
        lanes[skip] = next(lane for lane in range(len(skips)) if lane not in taken)
    return lanes


def _draw_box(axis: Axes, box: Box, y: float, palette: dict[str, str], turned: bool, scale: float) -> None:
    left, height = box.x, _height(box.stride)
    if box.branches:
        left = box.x + box.width - 0.07
        step = BRANCH + 0.14
        height = max(height, len(box.branches) * step - 0.14)
        for index, branch in enumerate(box.branches):
            middle = y + step * ((len(box.branches) - 1) / 2 - index)
            x = box.x + 0.05
            axis.plot([box.x - 0.03, x], [y, middle], color="0.35", lw=0.7, zorder=1)
            axis.plot([x, left], [middle, middle], color="0.35", lw=0.7, zorder=1)
            for part in branch:
                part.width = _breadth(part, scale)
                axis.add_patch(
                    Rectangle((x, middle - BRANCH / 2), part.width, BRANCH, facecolor=palette[part.kind], zorder=2)
                )
                x += part.width + 0.05
            axis.text(box.x + 0.05, middle - BRANCH / 2 - 0.01, _caption(branch), fontsize=FONT, va="top")
    axis.add_patch(
        Rectangle((left, y - height / 2), box.x + box.width - left, height, facecolor=palette[box.kind], zorder=2)
    )
    centre = left + (box.x + box.width - left) / 2
    if box.branches and _labelled(box):
        axis.text(centre, y + height / 2 + 0.02, str(box.channels), fontsize=FONT, ha="center", va="bottom")
    elif _labelled(box):
        axis.text(
            centre, y - height / 2 - 0.03, str(box.channels), fontsize=FONT, ha="center", va="top",
            rotation=90 if turned else 0,
        )  # fmt: skip
    if box.note:
        axis.text(centre, y + height / 2 + 0.02, box.note, fontsize=FONT, ha="center", va="bottom")
    if box.count > 1:
        axis.text(
            centre, y, f"×{box.count}", fontsize=FONT, ha="center", va="center", color=_ink(palette[box.kind]), zorder=3
        )


def _ink(color: str) -> str:
    """White or black, whichever reads better on a colour."""
    red, green, blue = to_rgb(color)
    return "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "black"


def _draw_link(axis: Axes, part: Box, box: Box, middle: dict[float, float]) -> None:
    start, end = part.x + part.width, box.x
    above, below = middle[part.stride], middle[box.stride]
    turn = end - 0.035 - (0.0 if box.branches else box.room)
    vertices = (
        [(start, above), (end, below)]
        if above == below
        else [(start, above), (turn, above), (turn, below), (end, below)]
    )
    axis.plot(*zip(*vertices, strict=True), color="0.35", lw=0.8, zorder=1, solid_capstyle="butt")


def _draw_skip(axis: Axes, part: Box, box: Box, middle: dict[float, float], lane: float) -> None:
    """Up from the box, along its lane, and up or down into the other one."""
    start = part.x + part.width / 2
    end = box.x + (0.03 if box.branches else box.width / 2)
    top = middle[part.stride] + _height(part.stride) / 2
    target = middle[box.stride] + math.copysign(_tall(box) / 2, lane - middle[box.stride])
    r = min(0.06, abs(end - start) / 2)
    bend = math.copysign(r, target - lane)
    path = Path(
        [
            (start, top),
            (start, lane - r),
            (start, lane),
            (start + r, lane),
            (end - r, lane),
            (end, lane),
            (end, lane + bend),
            (end, target),
        ],
        [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO],
    )
    axis.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=5, color="#f26d21", lw=1, zorder=1.5, shrinkA=0, shrinkB=0
        )
    )
