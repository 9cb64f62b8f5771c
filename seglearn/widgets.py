"""Interactive figures: `slider` for pages that are only read, `live` for a notebook that runs.

What `slider` returns is plain HTML with pictures inside that were made beforehand: it moves in the built book, in
JupyterLab and on Colab. `live` draws a new picture for any setting of its controls, and needs a kernel for it.
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from seglearn.errors import InputError

Frame = Any  # a matplotlib Figure, a PIL image, or a uint8 array [H, W] or [H, W, 3]

PAGE = """<div id="{id}" role="group" aria-label="{label}" style="max-width: {width}px; margin: 0.5rem 0">
<div id="{id}-frames">
{images}
</div>
<label style="display: block; margin-top: 0.25rem">{label}
<input type="range" min="0" max="{last}" value="{start}" step="1" autocomplete="off"
 aria-controls="{id}-frames"
 style="display: block; width: 100%; min-height: 2rem; margin: 0; cursor: pointer"></label>
<output aria-live="polite" style="display: block; min-height: 1.5em">{caption}</output>
<script>
(function () {{
  const root = document.getElementById("{id}"), input = root.querySelector("input");
  const images = root.querySelectorAll("img"), output = root.querySelector("output");
  function update() {{
    const chosen = Number(input.value), caption = images[chosen].dataset.caption;
    images.forEach((image, i) => {{ image.style.display = i === chosen ? "block" : "none"; }});
    output.textContent = caption;
    input.setAttribute("aria-valuetext", caption || `${{chosen + 1}} / ${{images.length}}`);
  }}
  input.addEventListener("input", update);
  update();
}})();
</script>
</div>"""

IMAGE = (
    '<img src="{source}" alt="{alt}" data-caption="{caption}" style="display: {display}; width: 100%; '
    'height: auto; border-radius: 0.25rem; background: #fff; image-rendering: {rendering}">'
)


def slider(
    frames: Sequence[Frame],
    captions: Sequence[str] | None = None,
    *,
    alt: str,
    label: str = "Move the slider",
    start: int = 0,
    width: int | None = None,
) -> HTML:
    """Pictures with a slider under them, as HTML that moves without a kernel.

    Every frame travels inside the page: lossless where it has at most 256 colours, as a label map has, else
    as the smaller one of PNG and JPEG. Arrow keys move the slider; a screen reader hears the caption.

    Args:
        frames: pictures of one size: matplotlib figures (they are closed), PIL images, or uint8 arrays [H, W]
            or [H, W, 3].
        captions: one line of text a frame, shown under the slider.
        alt: what the pictures show, for those who cannot see them; a frame's caption is added.
        label: what the slider changes, for example "Shift in pixels".
        start: the frame shown first, counted from 0.
        width: width on the page in CSS pixels, never more than the page has. Default: the frames' own.

    Raises:
        InputError: no frame; frames of different sizes; an array that is not uint8 [H, W] or [H, W, 3]; not
            one caption a frame; an empty `alt`; a `start` that is no frame.
    """
    if not frames:
        raise InputError("there is no frame: give the slider at least one picture.")
    captions = [""] * len(frames) if captions is None else list(captions)
    if len(captions) != len(frames):
        raise InputError(f"{len(frames)} frames have {len(captions)} captions: give one caption a frame.")
    if not alt.strip():
        raise InputError("alt is empty: say in a sentence what the pictures show.")
    if not 0 <= start < len(frames):
        raise InputError(f"start {start} is no frame: choose 0..{len(frames) - 1}.")
    pictures = [to_picture(frame) for frame in frames]
    if len(sizes := {picture.size for picture in pictures}) > 1:
        raise InputError(
            f"frames differ in size (width x height {sorted(sizes)}): make them one size, or the page would jump."
        )
    natural = pictures[0].width
    images = [
        IMAGE.format(
            source=data_uri(picture),
            alt=escape(f"{alt}: {caption}" if caption else alt),
            caption=escape(caption),
            display="block" if index == start else "none",
            rendering="pixelated" if (width or 0) > natural else "auto",
        )
        for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
    ]
    return HTML(
        PAGE.format(
            # Random, since the same cell run in two sessions may leave both outputs in one notebook.
            id=f"slider-{uuid.uuid4().hex}",
            label=escape(label),
            width=width or natural,
            images="\n".join(images),
            last=len(frames) - 1,
            start=start,
            caption=escape(captions[start]),
        )
    )


def live(draw: Callable[..., Frame], controls: Mapping[str, Any], *, width: int = 440) -> ipywidgets.VBox:
    """Controls over a picture that is drawn anew whenever one of them is moved: ipywidgets, for a running kernel.

    Args:
        draw: gets the controls' values by name and returns a frame, as `slider` takes them.
        controls: ipywidgets with a `value`, by the names of `draw`'s arguments; a name is shown where a control has no
            description. Sliders call `draw` when they are let go, since drawing takes longer than a mouse moves.
        width: of the picture in CSS pixels.

    Raises:
        InputError: no control; what `draw` returns is no frame.
    """
    if not controls:
        raise InputError("there is no control: give at least one, such as ipywidgets.IntSlider(1, 1, 9).")
    picture = ipywidgets.Image(format="png", width=width)

    def update(_: Any = None) -> None:
        frame = to_picture(draw(**{name: control.value for name, control in controls.items()}))
        picture.value = encode(frame, "PNG")

    for name, control in controls.items():
        control.description = control.description or name
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
        control.observe(update, "value")
    update()
    return ipywidgets.VBox([*controls.values(), picture])


def to_picture(frame: Frame) -> Image.Image:
    """A frame as an RGB image; see-through becomes white. A figure is drawn at 100 dpi and closed."""
    if isinstance(frame, Figure):
        buffer = io.BytesIO()
        frame.savefig(buffer, format="png", dpi=100, facecolor="white")
        plt.close(frame)
        frame = Image.open(buffer)
    if not isinstance(frame, Image.Image):
        array = np.asarray(frame)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            raise InputError(
                f"a frame is {array.dtype} {list(array.shape)}: expected uint8 [H, W] or [H, W, 3], "
                "a PIL image or a matplotlib figure."
            )
        frame = Image.fromarray(array)
    rgba = frame.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def data_uri(picture: Image.Image, quality: int = 88) -> str:
    """An RGB picture as a data URI: PNG for few colours or where smaller, else JPEG of this `quality`."""
    few = picture.getcolors(256)
    if few:  # a label map: exact colours, one byte a pixel
        options = [("png", encode(picture.quantize(len(few), dither=Image.Dither.NONE), "PNG", optimize=True))]
    else:  # subsampling 0 keeps the colours of thin lines
        options = [
            ("png", encode(picture, "PNG", optimize=True)),
            ("jpeg", encode(picture, "JPEG", quality=quality, subsampling=0, optimize=True)),
        ]
    kind, content = min(options, key=lambda option: len(option[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
