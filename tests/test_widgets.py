"""The slider: what is in its page, that pictures survive, and what it refuses."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from skimage import data

from seglearn.errors import InputError
from seglearn.widgets import live, slider


class Page(HTMLParser):
    """Collects the elements of a page, with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page(*arguments, **options):
    return Page(slider(*arguments, **{"alt": "a square", **options}).data)


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).convert("RGB"))


def noise(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def label_map(seed=0):
    return noise(11, 1, seed)[:, 0][np.random.default_rng(seed).integers(0, 11, (40, 50))]


def test_frames_captions_and_range_belong_together():
    result = page([noise(seed=i) for i in range(3)], ["one", "two", "three"], start=1, label="Which")
    (knob,) = result.all("input")
    assert (knob["type"], knob["min"], knob["max"], knob["value"]) == ("range", "0", "2", "1")
    images = result.all("img")
    assert [image["data-caption"] for image in images] == ["one", "two", "three"]
    assert [image["alt"] for image in images] == ["a square: one", "a square: two", "a square: three"]
    # one picture is to be seen even where scripts do not run
    assert ["display: block" in image["style"] for image in images] == [False, True, False]


def test_it_is_accessible():
    html = slider([noise(), noise()], ["a", "b"], alt="noise", label="Shift in pixels").data
    result = Page(html)
    assert re.search(r"<label[^>]*>Shift in pixels\s*<input", html)  # the knob has a name
    assert result.all("output")[0]["aria-live"] == "polite"  # the caption is read out
    assert result.all("input")[0]["aria-controls"] in {box.get("id") for box in result.all("div")}
    assert "aria-valuetext" in html and 'role="group"' in html
    assert "color:" not in html  # text takes the colour of the page, light or dark


def test_every_slider_has_its_own_id():
    ids = [page([label_map()]).all("div")[0]["id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_needs_no_network_and_no_kernel():
    html = slider([label_map()], alt="labels").data
    assert not re.search(r"https?://|import\s|require\(|Jupyter|google\.colab", html)


@pytest.mark.parametrize("array", [label_map(), noise(), np.zeros((5, 7), np.uint8)], ids=["labels", "noise", "grey"])
def test_label_maps_and_noise_arrive_unchanged(array):
    (image,) = page([array]).all("img")
    got = pixels(image)
    if image["src"].startswith("data:image/png"):
        expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)
        np.testing.assert_array_equal(got, expected)
    else:
        assert array.ndim == 3 and len(np.unique(array.reshape(-1, 3), axis=0)) > 256


def test_a_label_map_is_lossless():
    (image,) = page([label_map()]).all("img")
    assert image["src"].startswith("data:image/png")
    np.testing.assert_array_equal(pixels(image), label_map())


def test_a_photograph_becomes_a_close_jpeg():
    photograph = data.astronaut()[::2, ::2]
    (image,) = page([photograph]).all("img")
    assert image["src"].startswith("data:image/jpeg")
    assert np.abs(pixels(image).astype(int) - photograph).mean() < 3


def test_figures_pil_images_and_arrays():
    figure = plt.figure(figsize=(3, 2))
    transparent = Image.new("RGBA", (300, 200), (255, 0, 0, 0))
    images = page([figure, transparent, np.zeros((200, 300), np.uint8)]).all("img")
    assert [pixels(image).shape for image in images] == [(200, 300, 3)] * 3
    assert (pixels(images[1]) == 255).all()  # see-through becomes white, not black
    assert not plt.fignum_exists(figure.number)  # else the notebook would show it once more


def test_width_defaults_to_the_frames_own_and_enlarges_with_crisp_pixels():
    own, large = slider([label_map()], alt="labels").data, slider([label_map()], alt="labels", width=400).data
    assert "max-width: 50px" in own and "image-rendering: auto" in own
    assert "max-width: 400px" in large and "image-rendering: pixelated" in large


def test_text_is_escaped():
    html = slider([noise()], ['<b>"x" & {y}'], alt='</script><i "', label="<u>").data
    assert "<b>" not in html and "<i" not in html.replace("<img", "").replace("<input", "") and "<u>" not in html
    assert Page(html).all("img")[0]["data-caption"] == '<b>"x" & {y}'
    assert html.count("</script>") == 1


@pytest.mark.parametrize(
    ("frames", "options", "says"),
    [
        ([], {}, "no frame"),
        ([noise(), noise()], {"captions": ["one"]}, "2 frames have 1 captions"),
        ([noise(), noise(21)], {}, "differ in size"),
        ([noise() / 255], {}, "float64"),
        ([noise().transpose(2, 0, 1)], {}, "expected uint8"),
        ([noise()], {"alt": " "}, "alt is empty"),
        ([noise()], {"start": 1}, "start 1 is no frame"),
    ],
)
def test_refuses(frames, options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        page(frames, **options)


CHECK = """
const root = document.querySelector("div[role=group]"), input = root.querySelector("input");
const shown = () => [...root.querySelectorAll("img")].map((x) => getComputedStyle(x).display != "none");
const state = () => [shown(), root.querySelector("output").textContent, input.getAttribute("aria-valuetext")];
const states = [state()];
input.value = 2; input.dispatchEvent(new Event("input")); states.push(state());
document.title = JSON.stringify(states);
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium to run the script of the page")
def test_moving_the_slider_changes_picture_and_caption(tmp_path):
    html = slider([noise(seed=i) for i in range(3)], ["one", "two", "three"], alt="noise").data
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{html}<script>{CHECK}</script>")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = ["chromium", *options, "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    states = json.loads(re.search(r"<title>(.*)</title>", dom).group(1))
    assert states == [[[True, False, False], "one", "one"], [[False, False, True], "three", "three"]]


def test_a_live_picture_follows_its_controls():
    def draw(grey, side):
        return np.full((side, side), grey, np.uint8)

    box = live(draw, {"grey": ipywidgets.IntSlider(7, 0, 255), "side": ipywidgets.Dropdown(options=[4, 9])})
    grey, side, picture = box.children
    assert (grey.description, side.description) == ("grey", "side")
    assert not grey.continuous_update  # one picture when it is let go, not a queue of them
    for value, size in ((7, 4), (200, 9)):
        grey.value, side.value = value, size
        shown = np.asarray(Image.open(io.BytesIO(picture.value)))
        assert shown.shape == (size, size, 3) and (shown == value).all()


def test_a_live_picture_needs_controls_and_frames():
    with pytest.raises(InputError, match="no control"):
        live(lambda: None, {})
    with pytest.raises(InputError, match="a frame is float64"):
        live(lambda x: np.zeros((2, 2)), {"x": ipywidgets.IntSlider()})
