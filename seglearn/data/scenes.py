"""Generated street scenes: the course's default data, with CamVid's classes and nothing to download.

A scene is a small world in metres. The camera stands in a lane at the origin; `x` points right, `y` up and
`z` down the street. Objects are placed in the world and painted from far to near, so that near ones cover far
ones. Colour and class are one stroke: the canvas is an RGBA image whose fourth channel holds the class, so
picture and label cannot disagree. The canvas is twice as large as the result: the picture is averaged down
(smooth edges), the label is sampled (no mixed classes). What weather, lens and sensor do to the picture comes
last, in `develop`.

Of all random numbers only the sensor's noise depends on the size in pixels, and it is drawn last: at every
size a scene is the same street.

Read it from the end: `paint` makes a scene, the functions above it place things, those above them draw one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from seglearn.data.camvid import CLASSES, IGNORE_INDEX, PALETTE
from seglearn.errors import InputError

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
LENGTHS = {"train": 400, "val": 100, "test": 100}
CIRCLE = [2 * math.pi * i / 12 for i in range(12)]  # angles
OVERSAMPLING = 2  # canvas pixels per picture pixel and axis
ASPECT = 4 / 3  # the camera's picture is ASPECT wide and 1 high; other shapes stretch it
FAR = 95.0  # metres to the end of the street

RAMP = np.linspace(0, 1, 256)[:, None]
# By class, void last: how strong its grain is, and whether it is large enough for void along its border.
GRAIN = np.array([0.006, 0.05, 0.03, 0, 0, 0.1, 0.02, 0.06, 0.02, 0.05, 0.05, 0], np.float32)
LARGE = np.isin(np.arange(12), (SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR))

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
T = TypeVar("T")

WALLS = ((150, 82, 62), (172, 110, 84), (196, 178, 140), (206, 200, 188), (134, 130, 126), (222, 214, 196),
         (112, 92, 80), (168, 160, 150), (182, 140, 100), (150, 165, 170), (215, 190, 170))  # fmt: skip
ROOFS = ((92, 62, 52), (70, 70, 76), (120, 72, 56), (86, 84, 82))
PAINTS = ((190, 192, 196), (40, 42, 46), (228, 228, 226), (120, 24, 26), (32, 52, 98), (96, 100, 104),
          (58, 84, 66), (176, 150, 110), (150, 82, 50), (70, 120, 150), (205, 170, 60))  # fmt: skip
CLOTHES = ((36, 40, 52), (120, 36, 40), (60, 80, 120), (170, 160, 140), (50, 50, 50), (200, 198, 190),
           (70, 96, 70), (190, 120, 50), (92, 70, 110), (222, 200, 60))  # fmt: skip
SKIN = ((232, 194, 166), (198, 150, 118), (140, 96, 70), (92, 62, 46))
HAIR = ((40, 32, 28), (92, 66, 44), (150, 120, 80), (120, 118, 116))
LEAVES = ((66, 92, 42), (84, 108, 52), (52, 76, 44), (104, 112, 50), (150, 104, 44), (120, 84, 50),
          (88, 96, 72))  # fmt: skip
FENCES = ((60, 62, 60), (206, 202, 192), (120, 92, 66), (150, 130, 104))
SIGNS = ("limit", "no entry", "mandatory", "warning", "warning", "light", "board")
BLACK: Colour = (20, 20, 20)
# Side views of vehicles in metres, (forward, up), from the rear sill over the roof to the front sill.
VEHICLES: dict[str, tuple[tuple[float, float], ...]] = {
    "hatchback": ((0, 0.3), (0.0, 0.95), (0.4, 1.46), (2.3, 1.5), (3.1, 0.98), (3.95, 0.78), (4.05, 0.3)),
    "saloon": ((0, 0.3), (0.55, 0.98), (1.3, 1.42), (2.6, 1.44), (3.4, 0.98), (4.5, 0.78), (4.6, 0.3)),
    "estate": ((0, 0.32), (0, 1.05), (0.15, 1.66), (2.7, 1.7), (3.4, 1.1), (4.4, 0.95), (4.5, 0.32)),
    "van": ((0, 0.35), (0, 1.2), (0.05, 2.15), (3.7, 2.15), (4.4, 1.2), (5.0, 1.0), (5.1, 0.35)),
    "bus": ((0, 0.35), (0, 1.2), (0, 2.95), (9.8, 2.95), (9.95, 1.2), (10, 1.1), (10, 0.35)),
}


def cloudy(seed: int, power: float, floor: float = 0.0) -> np.ndarray:
    """A seamless texture, float32 [512, 512], mean 0, deviation 1: white noise with a 1/f^power spectrum."""
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]) + floor
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((512, 512)))
    tile = np.fft.irfft2(white / frequency**power, s=(512, 512))
    return (tile / tile.std()).astype(np.float32)


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """The texture of clouds, walls and asphalt."""
    return cloudy(seed=0, power=1.1)


def look_up(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The tile's texture at any position, in tile pixels; the tile repeats."""
    return noise_tile()[row.astype(np.int32) & 511, column.astype(np.int32) & 511]


@lru_cache(maxsize=2)
def crowns(mirrored: bool) -> list[list[list[Image.Image]]]:
    """Crowns of leaves to be stamped: balls lit from the upper left (or right), with ragged rims.

    By crown and level: [light, shape] as grey pictures of 160, 80, 40 or 20 pixels.
    """
    if mirrored:
        return [[[ImageOps.mirror(part) for part in pair] for pair in crown] for crown in crowns(False)]
    rng, found, leaves = np.random.default_rng(1), [], cloudy(seed=2, power=1.6, floor=0.04)
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    for _ in range(24):
        depth, light = np.full(x.shape, -1.0), np.zeros(x.shape)
        for turn, distance, size in rng.uniform(0, 1, (16, 3)):
            r, angle = 0.3 + 0.22 * size, 2 * math.pi * turn
            dx = (x - (0.92 - r) * distance**0.5 * math.cos(angle)) / r
            dy = (y - (0.92 - r) * distance**0.5 * math.sin(angle)) / r
            ball = 1 - dx**2 - dy**2
            bump = np.sqrt(np.clip(ball, 0, 1)) * r
            light = np.where(bump > np.maximum(depth, 0), 0.45 * bump / r - 0.3 * dx - 0.55 * dy, light)
            depth = np.maximum(depth, np.where(ball > 0, bump, ball))
        row, column = rng.integers(0, 512 - 160, 2)
        leaf = leaves[row : row + 160, column : column + 160]
        tone = 108 + 62 * light * (1 - 0.3 * y) + 24 * leaf - 18 * y
        shape = 128 + 500 * (depth - 0.1 + 0.1 * leaf)
        pair = [Image.fromarray(np.clip(part, 0, 255).astype(np.uint8)) for part in (tone, shape)]
        found.append([[part.reduce(1 << level) for part in pair] for level in range(4)])
    return found


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`; much faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour `a` with `share` of colour `b`."""
    return (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2]))


def vary(rng: np.random.Generator, colour: Colour, amount: float = 14) -> Colour:
    """`colour` moved by up to `amount` levels in brightness and half of that in every channel."""
    d, *(r, g, b) = (2 * amount * rng.random(4) - amount).tolist()
    return colour[0] + d + r / 2, colour[1] + d + g / 2, colour[2] + d + b / 2


@dataclass(frozen=True)
class Weather:
    """Light and air of one scene."""

    kind: str
    sun: Point  # unit vector towards the sun
    ambient: float  # brightness in the shade
    direct: float  # brightness that full sun adds
    haze: float  # share of light lost per metre
    haze_colour: Colour
    zenith: Colour
    clouds: float  # share of the sky covered
    gain: Colour  # exposure and colour temperature

    @staticmethod
    def sample(rng: np.random.Generator) -> Weather:
        kind = pick(rng, ("clear",) * 8 + ("overcast",) * 5 + ("fog",) * 2 + ("rain",) * 2 + ("dusk",) * 3)
        azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.1)
        sun = (math.cos(height) * math.sin(azimuth), math.sin(height), math.cos(height) * math.cos(azimuth))
        exposure, warmth = rng.uniform(0.85, 1.15), rng.uniform(-0.07, 0.07)
        gain = (exposure * (1 + warmth), exposure, exposure * (1 - warmth))
        air: dict[str, tuple[float, float, float, Colour, Colour, float]] = {
            "clear": (0.66, 0.5, 0.002, (205, 218, 230), (86, 138, 204), rng.uniform(0.1, 0.6)),
            "overcast": (0.86, 0.1, 0.004, (214, 216, 218), (178, 186, 194), 0.8),
            "fog": (0.9, 0.0, rng.uniform(0.018, 0.035), (206, 208, 208), (196, 199, 202), 0.2),
            "rain": (0.74, 0.05, 0.009, (170, 176, 182), (128, 136, 146), 0.9),
            "dusk": (0.62, 0.14, 0.004, (238, 176, 130), (72, 86, 132), 0.4),
        }
        if kind == "dusk":
            gain = gain[0] * 0.86, gain[1] * 0.74, gain[2] * 0.78
        return Weather(kind, sun, *air[kind], gain)

    @property
    def dim(self) -> bool:
        """True when drivers switch their lights on."""
        return self.kind in ("dusk", "rain", "fog")

    def light(self, nx: float, ny: float, nz: float) -> float:
        """Brightness of a surface with this normal."""
        return self.ambient + self.direct * max(0.0, nx * self.sun[0] + ny * self.sun[1] + nz * self.sun[2])


class Painter:
    """A camera and its canvas: takes shapes in metres, writes colour and class in pixels."""

    def __init__(self, rng: np.random.Generator, weather: Weather, size: tuple[int, int]) -> None:
        self.rng, self.weather, self.size = rng, weather, size
        self.focal, self.height = rng.uniform(1.05, 1.35), rng.uniform(1.35, 1.8)
        self.vx, self.vy = ASPECT / 2 + rng.uniform(-0.12, 0.12), rng.uniform(0.45, 0.57)
        self.bend, self.roll = rng.normal(0, 0.0012), rng.normal(0, 0.008)
        height, width = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
        self.sx, self.sy = width / ASPECT, float(height)
        self.image = Image.new("RGBA", (width, height))
        self.draw = ImageDraw.Draw(self.image)
        self.shade = Image.new("L", (width, height))  # shadows on the ground
        self.shade_draw = ImageDraw.Draw(self.shade)
        self.glow = Image.new("RGB", (96, 72))  # lamps that shine at dusk
        self.glow_draw = ImageDraw.Draw(self.glow)
        self.queue: list[tuple[float, Callable[[], None]]] = []

    def later(self, z: float, draw: Callable[..., None], *args: Any) -> None:
        """Note that `draw(painter, *args)` paints something `z` metres away."""
        self.queue.append((z, partial(draw, self, *args)))

    def paint_queue(self) -> None:
        """Paint what was noted, far to near."""
        for _, draw in sorted(self.queue, key=lambda entry: -entry[0]):
            draw()

    def column(self, x: float, z: float) -> tuple[float, float, float]:
        """The upright line over (x, z) on the canvas: its x, the y of its foot, and pixels per metre up.

        The street bends like a parabola, and the camera may roll a little.
        """
        scale = self.focal / (z if z > 0.8 else 0.8)
        u = scale * (x + self.bend * z * z)
        foot = self.vy + scale * self.height + self.roll * u
        return (self.vx + u) * self.sx, foot * self.sy, scale * self.sy

    def at(self, point: Point) -> tuple[float, float]:
        """Canvas position of a point in the world."""
        u, v, scale = self.column(point[0], point[2])
        return u, v - point[1] * scale

    def ink(self, colour: Colour, z: float, label: int, light: float = 1.0) -> tuple[int, int, int, int]:
        """What the canvas stores for a colour `z` metres away: lit, behind haze, with its class."""
        clear = math.exp(-self.weather.haze * z)
        haze, lit = 1 - clear, clear * light
        air = self.weather.haze_colour
        r, g, b = (
            lit * colour[0] + haze * air[0],
            lit * colour[1] + haze * air[1],
            lit * colour[2] + haze * air[2],
        )
        return min(255, max(0, int(r))), min(255, max(0, int(g))), min(255, max(0, int(b))), label

    def polygon(
        self, points: Sequence[Point], colour: Colour, label: int, light: float = 1.0, cull: bool = False
    ) -> bool:
        """Fill a polygon; with `cull` only when its corners run clockwise as seen. True when painted."""
        corners = [self.at(p) for p in points]
        if cull:
            (x0, y0), (x1, y1), (x2, y2) = corners[:3]
            if (x1 - x0) * (y2 - y0) <= (y1 - y0) * (x2 - x0):
                return False
        self.draw.polygon(corners, self.ink(colour, points[0][2] / 2 + points[2][2] / 2, label, light))
        return True

    def line(self, points: Sequence[Point], width: float, colour: Colour, label: int, light: float = 1) -> None:
        """A stroke `width` metres wide, at least one pixel of the picture."""
        z = max(points[0][2], 0.8)
        pixels = max(OVERSAMPLING, round(width * self.focal / z * self.sy))
        self.draw.line([self.at(p) for p in points], self.ink(colour, z, label, light), pixels)

    def disc(self, centre: Point, rx: float, ry: float, colour: Colour, label: int, light: float = 1) -> None:
        """An ellipse that faces the camera, radii in metres."""
        u, v = self.at(centre)
        a, b = rx * self.focal / centre[2] * self.sx, ry * self.focal / centre[2] * self.sy
        self.draw.ellipse((u - a, v - b, u + a, v + b), self.ink(colour, centre[2], label, light))

    def label_only(self, points: Sequence[Point], label: int) -> None:
        """Give an area a class but leave its picture: what is seen through bars or spokes."""
        classes = self.image.getchannel("A")
        ImageDraw.Draw(classes).polygon([self.at(p) for p in points], label)
        self.image.putalpha(classes)

    def shadow(self, corners: Sequence[tuple[float, float]], height: float) -> None:
        """The shadow that a prism over ground `corners` (x, z) casts, and the dark right under it."""
        foot = [self.at((x, 0, z)) for x, z in corners]
        if self.weather.kind == "clear":
            sun = self.weather.sun
            dx, dz = -sun[0] / sun[1] * height, -sun[2] / sun[1] * height
            tip = [self.at((x + dx, 0, z + dz)) for x, z in corners]
            for i in range(len(foot)):
                self.shade_draw.polygon((foot[i - 1], foot[i], tip[i], tip[i - 1]), 105)
            self.shade_draw.polygon(tip, 105)
        self.shade_draw.polygon(foot, 150)

    def shine(self, point: Point, radius: float, colour: tuple[int, int, int]) -> None:
        """Let a lamp glow at dusk, in fog and in rain; radius in metres."""
        if self.weather.dim:
            u, v = self.at(point)
            u, v = u / self.sx * 72, v / self.sy * 72
            r = min(radius * self.focal / point[2] * 72, 5)
            self.glow_draw.ellipse((u - r, v - r, u + r, v + r), colour)


class Wall:
    """A flat upright surface of a building: draws at (a, b), metres from `origin` along `along` and up."""

    def __init__(self, painter: Painter, origin: Point, along: tuple[int, int], normal: tuple[int, int]):
        self.painter, self.origin, self.along = painter, origin, along
        self.light = painter.weather.light(normal[0], 0, normal[1])

    def gable(self, width: float, bottom: float, top: float, colour: Colour) -> None:
        """Fill the triangle under a pitched roof."""
        (x, y, z), (dx, dz) = self.origin, self.along
        corners = [(x + a * dx, y + b, z + a * dz) for a, b in ((0, bottom), (width / 2, top), (width, bottom))]
        self.painter.polygon(corners, colour, BUILDING, self.light)

    def rect(self, a: float, b: float, width: float, height: float, colour: Colour) -> None:
        """Fill a rectangle whose lower left corner is (a, b)."""
        p, (x, y, z), (dx, dz) = self.painter, self.origin, self.along
        u0, v0, s0 = p.column(x + a * dx, z + a * dz)
        u1, v1, s1 = p.column(x + (a + width) * dx, z + (a + width) * dz)
        low, high = y + b, y + b + height
        corners = u0, v0 - low * s0, u1, v1 - low * s1, u1, v1 - high * s1, u0, v0 - high * s0
        p.draw.polygon(corners, p.ink(colour, z + (a + width / 2) * dz, BUILDING, self.light))


@dataclass(frozen=True)
class Street:
    """The cross-section of the street, metres; index 0 is the left side, 1 the right side."""

    edge: tuple[float, float]  # distance of the kerb
    pavement: tuple[float, float]  # width of the pavement
    setback: tuple[float, float]  # from the pavement to the houses
    parking: tuple[bool, bool]  # a lane of parked cars?
    style: tuple[str, str]  # "terrace", "houses" or "park"
    junction: tuple[float, float]  # a side street from z to z, on both sides
    centre: float  # x of the line between the directions

    @staticmethod
    def sample(rng: np.random.Generator) -> Street:
        parking = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
        styles = ("terrace", "terrace", "terrace", "houses", "houses", "park")
        style = pick(rng, styles), pick(rng, styles)
        room = {"terrace": 0.0, "houses": rng.uniform(2.5, 5), "park": 9.0}
        own, other = rng.uniform(1.7, 2.3), rng.uniform(4.2, 5.4)
        start = rng.uniform(14, 60) if rng.random() < 0.6 else 400.0  # 400: out of sight
        return Street(
            edge=(own + 2.1 * parking[0], other + 2.1 * parking[1]),
            pavement=(rng.uniform(1.8, 3.6), rng.uniform(1.8, 3.6)),
            setback=(room[style[0]], room[style[1]]),
            parking=parking,
            style=style,
            junction=(start, start + rng.uniform(6, 9)),
            centre=own - 0.1,
        )

    def open(self, z0: float, z1: float) -> bool:
        """True when nothing between z0 and z1 stands in the side street."""
        return z1 < self.junction[0] or z0 > self.junction[1]

    def line(self, side: int) -> float:
        """Distance from the middle to the far edge of the pavement."""
        return self.edge[side] + self.pavement[side]


def sky(p: Painter) -> None:
    """A gradient from horizon to zenith, clouds in perspective, a glow around a low sun."""
    w = p.weather
    low, high = np.array(w.haze_colour, np.float32), np.array(w.zenith, np.float32)
    v, u = np.linspace(0, 1, 72, dtype=np.float32)[:, None], np.linspace(0, ASPECT, 96, dtype=np.float32)
    up = np.clip((p.vy + 0.03 - v) / (p.vy + 0.03), 0, 1)  # 0 at the horizon, 1 at the upper rim
    reach = 1 / (up + 0.12)
    down, right = p.rng.integers(0, 512, 2)
    puffs = np.clip(
        (look_up(22 * reach + down, 40 * (u - p.vx) * reach + right) - 1.6 + 3.2 * w.clouds) * 0.6, 0, 1
    ) * np.clip(up * 5, 0, 1)
    puffs *= 0.8 if w.kind in ("clear", "dusk") else 0.35
    colour = low + (high - low) * (up**0.6)[..., None]
    colour = colour + ((low + 255) / 2 - colour) * puffs[..., None]
    if w.sun[2] > 0 and w.kind in ("clear", "dusk"):
        su, sv = p.vx + p.focal * w.sun[0] / w.sun[2], p.vy - 0.5 * p.focal * w.sun[1] / w.sun[2]
        colour += 90 * np.exp(-((u - su) ** 2 + (v - sv) ** 2) / 0.08)[..., None]
    picture = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    p.image.paste(picture.resize(p.image.size, Image.Resampling.BILINEAR))
    p.image.putalpha(SKY)


def strip(p: Painter, x0: float, x1: float, z0: float, z1: float, colour: Colour, label: int) -> None:
    """A band of ground along the street; long ones follow its bend."""
    n = max(2, int((z1 - z0) / 8)) if z1 - z0 > 4 else 2
    zs = [z0 + (z1 - z0) * (i / (n - 1)) ** 2 for i in range(n)]
    near = [(x0, 0.0, z) for z in zs] + [(x1, 0.0, z) for z in reversed(zs)]
    p.draw.polygon([p.at(point) for point in near], p.ink(colour, 0, label, p.weather.light(0, 1, 0)))


def ground(p: Painter, s: Street) -> None:
    """Verges, pavements with kerbs and joints, the road with its markings."""
    rng = p.rng
    asphalt = vary(rng, pick(rng, ((104, 104, 106), (92, 92, 96), (116, 112, 108), (84, 82, 84))), 8)
    paving = vary(rng, pick(rng, ((142, 138, 132), (128, 126, 124), (158, 146, 132), (116, 114, 112))), 8)
    grass = vary(rng, pick(rng, ((92, 112, 56), (104, 112, 64), (80, 100, 54))))
    paint, light = vary(rng, (206, 204, 196), 12), p.weather.light(0, 1, 0)
    joint, stone = mix(paving, (60, 58, 56), 0.35), mix(paving, (225, 222, 215), 0.45)
    strip(p, -300, 300, 1, 1500, grass, TREE)
    for side, sign in enumerate((-1, 1)):
        kerb, line = sign * s.edge[side], sign * s.line(side)
        strip(p, kerb, line, 1, 1500, paving, PAVEMENT)
        for z in np.arange(3, 24, 0.9).tolist():
            p.line([(kerb, 0, z), (line, 0, z)], 0.025, mix(joint, paving, z / 30), PAVEMENT, light)
        for x in (kerb + (line - kerb) / 3, kerb + (line - kerb) * 2 / 3):
            strip(p, x - 0.015, x + 0.015, 1, 20, joint, PAVEMENT)
        strip(p, kerb - sign * 0.02, kerb + sign * 0.16, 1, 60, stone, PAVEMENT)
        strip(p, kerb - sign * 0.12, kerb - sign * 0.02, 1, 30, mix(asphalt, BLACK, 0.4), ROAD)
    strip(p, -s.edge[0], s.edge[1], 1, 1500, asphalt, ROAD)
    strip(p, -200, 200, *s.junction, asphalt, ROAD)
    for side, sign in enumerate((-1, 1)):
        if rng.random() < 0.5:  # a line along the kerb, or along the parked cars
            x = sign * (s.edge[side] - 0.35 - 1.8 * s.parking[side])
            strip(p, x, x + 0.1, 1, 80, pick(rng, (paint, (196, 168, 70))), ROAD)
    dash, gap, phase = rng.uniform(1.5, 4), rng.uniform(2, 6), rng.uniform(0, 6)
    for z in np.arange(1 + phase, 90, dash + gap).tolist():
        if s.open(z, z + dash):
            strip(p, s.centre - 0.07, s.centre + 0.07, z, z + dash, paint, ROAD)
    if s.junction[0] < 100:
        strip(p, -s.edge[0] + 0.2, s.centre - 0.1, s.junction[0] - 1.2, s.junction[0] - 0.8, paint, ROAD)
    if rng.random() < 0.3:  # zebra crossing
        z = rng.uniform(7, 30)
        for x in np.arange(-s.edge[0] + 0.3, s.edge[1] - 0.5, 1.1).tolist():
            strip(p, x, x + 0.55, z, z + 2.8, paint, ROAD)
    for _ in range(4):  # patches and manholes
        x, z, w = rng.uniform(-s.edge[0], s.edge[1] - 1.5), rng.uniform(4, 40), rng.uniform(0.4, 1.5)
        worn = mix(asphalt, (50, 50, 52), rng.uniform(-0.2, 0.4))
        strip(p, x, x + w, z, z + w * rng.uniform(0.8, 3), worn, ROAD)


def backdrop(p: Painter) -> None:
    """What closes the view at the end of the street: blocks and tree tops."""
    rng = p.rng
    for place in range(-110, 110, 15):
        x = place + rng.uniform(-4, 4)
        if rng.random() < 0.5:
            wall = Wall(p, (x, -1, FAR + 30), (1, 0), (0, -1))
            wall.rect(0, 0, rng.uniform(10, 20), rng.uniform(6, 16), vary(rng, pick(rng, WALLS)))
        else:
            centre = x, rng.uniform(2, 5), FAR + 25
            foliage(p, centre, rng.uniform(7, 11), rng.uniform(4, 7), pick(rng, LEAVES))


def facade(p: Painter, face: Wall, length: float, height: float, wall: Colour, trim: Colour, kind: str) -> None:
    """A wall with rows of windows, and doors or shop fronts on the ground floor."""
    rng, storey, detail = p.rng, p.rng.uniform(2.7, 3.3), face.origin[2] < 32
    floors, columns = max(1, int(height / storey)), max(1, int(length / rng.uniform(2.2, 3.4)))
    bay, w, h = length / columns, rng.uniform(0.9, 1.3), rng.uniform(1.2, 1.7)
    for column in range(columns):  # wall by bays, so that haze grows along it
        face.rect(column * bay - 0.02, 0, bay + 0.04, height, wall)
    if detail:
        face.rect(0, height - 0.35, length, 0.35, trim)
        face.rect(0, 0, length, 0.5, mix(wall, (60, 56, 54), 0.4))
    if face.origin[2] > 50:  # too far to tell one window from the next
        for floor in range(floors):
            face.rect(0.6, floor * storey + 0.9, length - 1.2, h, mix(wall, (66, 76, 88), 0.45))
        return
    for column in range(columns):
        a = (column + 0.5) * bay - w / 2
        u = p.column(face.origin[0] + a * face.along[0], face.origin[2] + a * face.along[1])[0] / p.sx
        if not -0.25 < u < ASPECT + 0.25:
            continue
        for floor in range(floors):
            b, glass = floor * storey + 0.9, vary(rng, (66, 76, 88), 22)
            if p.weather.kind == "dusk" and rng.random() < 0.35:
                glass = (255, 214, 140)
            elif rng.random() < 0.3:
                glass = mix(glass, (205, 200, 190), 0.5)  # curtains, reflections
            if floor == 0 and kind == "shop":
                face.rect(a + w / 2 - bay * 0.44, 0.5, bay * 0.88, 1.9, glass)
                continue
            if floor == 0 and column % 3 == 1:
                face.rect(a, 0, 1.0, 2.15, vary(rng, pick(rng, PAINTS)))
                continue
            if detail:
                face.rect(a - 0.1, b - 0.12, w + 0.2, h + 0.22, trim)
            face.rect(a, b, w, h, glass)
            if detail:
                face.rect(a + w / 2 - 0.03, b, 0.06, h, trim)
    if kind == "shop":
        face.rect(0, 2.45, length, 0.55, vary(rng, pick(rng, PAINTS)))


def building(p: Painter, sign: int, x: float, z0: float, z1: float, height: float, kind: str) -> None:
    """A house from z0 to z1 whose front stands at `x`: end wall, roof with chimney, front."""
    rng = p.rng
    wall = vary(rng, pick(rng, WALLS))
    trim = mix(wall, (226, 222, 212), rng.uniform(0.4, 0.9))
    depth, rise = rng.uniform(7, 10), rng.uniform(1.8, 3.2) * (kind != "block")
    p.shadow([(x, z0), (x, z1), (x + sign * depth, z1), (x + sign * depth, z0)], height + rise / 2)
    if rise:
        slate, ridge = vary(rng, pick(rng, ROOFS)), x + sign * depth / 2
        z = rng.uniform(z0, z1 - 0.8)
        stack = Wall(p, (ridge - 0.4, height + rise - 0.8, z), (1, 0), (0, -1))
        stack.rect(0, 0, 0.9, 2.1, mix(wall, (120, 70, 55), 0.5))
        roof = [(x, height, z0), (x, height, z1), (ridge, height + rise, z1), (ridge, height + rise, z0)]
        p.polygon(roof, slate, BUILDING, p.weather.light(-sign * 0.6, 0.8, 0))
    end = Wall(p, (x, 0, z0), (sign, 0), (0, -1))
    if rise:
        end.gable(depth, height - 0.1, height + rise, wall)
    facade(p, end, depth, height, wall, trim, "plain")
    facade(p, Wall(p, (x, 0, z0), (0, 1), (-sign, 0)), z1 - z0, height, wall, trim, kind)


def foliage(p: Painter, centre: Point, rx: float, ry: float, colour: Colour) -> None:
    """A crown of leaves, radii in metres: a stamp in this colour, lit from the sun's side."""
    crown, z, (u, v) = pick(p.rng, crowns(p.weather.sun[0] > 0)), centre[2], p.at(centre)
    scale = p.focal / z
    size = max(3, int(2 * rx * scale * p.sx)), max(3, int(2 * ry * scale * p.sy))
    left, top = round(u - size[0] / 2), round(v - size[1] / 2)
    if left > p.image.width or left + size[0] < 0 or top + size[1] < 0:
        return
    level = next((i for i in (3, 2, 1) if 160 >> i >= size[0]), 0)
    tone, shape = (part.resize(size, Image.Resampling.BILINEAR) for part in crown[level])
    dark, light = (np.array(p.ink(colour, z, TREE, k * p.weather.light(0, 0.7, -0.3))) for k in (0.25, 2.0))
    ramp = (dark + RAMP * (light - dark)).astype(np.uint8)
    stamp = Image.frombuffer("RGBA", size, np.take(ramp.view(np.uint32), np.asarray(tone)).tobytes())
    p.image.paste(stamp, (left, top), shape.convert("1", dither=Image.Dither.NONE))


def tree(p: Painter, x: float, z: float, height: float, colour: Colour) -> None:
    """A trunk with two boughs and a crown of several parts."""
    rng = p.rng
    bark, r = vary(rng, (84, 68, 54)), height * rng.uniform(0.3, 0.4)
    stem = height - 1.5 * r
    p.shadow([(x - 0.15, z - 0.15), (x + 0.15, z - 0.15), (x + 0.15, z + 0.15), (x - 0.15, z + 0.15)], stem)
    if p.weather.kind == "clear":
        dx, dz = (-p.weather.sun[i] / p.weather.sun[1] * (stem + r) for i in (0, 2))
        ring = [(x + dx + 0.8 * r * math.cos(t), 0.0, z + dz + 0.8 * r * math.sin(t)) for t in CIRCLE]
        p.shade_draw.polygon([p.at(point) for point in ring], 95)
    light = p.weather.light(0, 0.3, -0.7)
    p.line([(x, 0, z), (x + rng.uniform(-0.2, 0.2), stem + r, z)], rng.uniform(0.2, 0.38), bark, TREE, light)
    for side in (-1, 1):
        p.line([(x, stem * 0.8, z), (x + side * r * 0.6, stem + r * 0.7, z)], 0.12, bark, TREE, light)
    parts = ((-0.45, 0.0, 0.72), (0.45, 0.1, 0.7), (0.0, 0.45, 0.85)) if z < 40 else ((0.0, 0.3, 1.1),)
    for dx, dy, k in parts:
        foliage(p, (x + dx * r, stem + r * (0.5 + dy), z), r * k, r * k * 0.85, vary(rng, colour, 8))


def hedge(p: Painter, x: float, z0: float, z1: float, height: float) -> None:
    """A hedge along the street, a row of low bushes."""
    colour = pick(p.rng, LEAVES[:4])
    for z in np.arange(z1, z0, -1.3 if z0 < 20 else -2.6).tolist():
        foliage(p, (x, height * 0.45, z), 0.9, height * 0.6, vary(p.rng, colour, 6))


def fence(p: Painter, x: float, z0: float, z1: float, kind: str, colour: Colour) -> None:
    """Railings, pickets or boards along the street. The class is that of the whole area, gaps included."""
    height = {"railing": 1.1, "picket": 1.0, "board": 1.7}[kind]
    light = p.weather.light(-math.copysign(1, x), 0, 0)
    zs = np.linspace(z1, z0, max(2, int((z1 - z0) / 5))).tolist()
    area = [(x, 0.0, z) for z in zs] + [(x, height, z) for z in reversed(zs)]
    p.shadow([(x, z0), (x, z1), (x + 0.05, z1), (x + 0.05, z0)], height * 0.9)
    if kind == "board":
        p.polygon(area, colour, FENCE, light)
    p.label_only(area, FENCE)
    width, step = {"railing": (0.03, 0.16), "picket": (0.09, 0.2), "board": (0.015, 0.22)}[kind]
    bar = colour if kind != "board" else mix(colour, (30, 26, 22), 0.5)
    z = z1
    while z > z0:
        if z > 0.8 * abs(x):  # nearer ones are outside the picture
            p.line([(x, 0.05, z), (x, height * 0.97, z)], width, bar, FENCE, light)
        z -= step * max(1.0, z / 10)
    for y in (0.25, height * 0.92) if kind != "board" else (height,):
        for za, zb in zip(zs[:-1], zs[1:], strict=True):
            p.line([(x, y, za), (x, y, zb)], 0.05, mix(colour, (20, 20, 20), 0.15), FENCE, light)


def lamp_post(p: Painter, x: float, z: float, height: float, reach: float) -> None:
    """A tall post with an arm over the road."""
    colour = vary(p.rng, pick(p.rng, ((92, 96, 98), (58, 64, 60), (130, 132, 130))))
    light = p.weather.light(0, 0, -1)
    p.shadow([(x - 0.06, z), (x + 0.06, z), (x + 0.06, z + 0.1), (x - 0.06, z + 0.1)], height)
    p.line([(x, 0, z), (x, 1.2, z)], 0.2, colour, POLE, light)
    p.line([(x, 1, z), (x, height, z)], 0.13, colour, POLE, light)
    tip, top = x + reach, height + 0.35
    p.line([(x, height, z), (x + reach / 2, top, z), (tip, top, z)], 0.09, colour, POLE, light)
    p.line([(tip - 0.35, top, z), (tip + 0.35, top, z)], 0.16, mix(colour, (225, 225, 215), 0.4), POLE)
    if p.weather.kind == "dusk":
        p.shine((tip, top, z), 0.8, (255, 190, 110))


def road_sign(p: Painter, x: float, z: float, kind: str, size: float) -> None:
    """A sign or a traffic light on its post; `size` is the plate's half width in metres."""
    rng, light = p.rng, p.weather.light(0, 0.2, -1) + 0.05
    top = rng.uniform(2.3, 2.9)
    red, white, blue, black = (188, 32, 38), (232, 232, 228), (36, 78, 158), (30, 30, 32)
    p.line([(x, 0, z), (x, top, z)], 0.09, (120, 122, 122), POLE, light)
    z -= 0.05

    def plate(corners: Sequence[tuple[float, float]], colour: Colour) -> None:
        p.polygon([(x + a * size, top + b * size, z) for a, b in corners], colour, SIGN, light)

    def box(a: float, b: float, c: float, d: float, colour: Colour) -> None:
        plate(((a, b), (c, b), (c, d), (a, d)), colour)

    match kind:
        case "limit":
            for r, colour in ((1, red), (0.76, white)):
                p.disc((x, top, z), r * size, r * size, colour, SIGN, light)
            box(-0.4, -0.35, -0.1, 0.35, black)
            box(0.1, -0.35, 0.4, 0.35, black)
        case "no entry":
            p.disc((x, top, z), size, size, red, SIGN, light)
            box(-0.65, -0.15, 0.65, 0.15, white)
        case "mandatory":
            p.disc((x, top, z), size, size, blue, SIGN, light)
            box(-0.12, -0.6, 0.12, 0.2, white)
            plate(((-0.45, 0.1), (0.45, 0.1), (0, 0.65)), white)
        case "warning":
            for r, colour in ((1, red), (0.66, white)):
                plate(((-r, -0.7 * r), (r, -0.7 * r), (0, r)), colour)
            box(-0.08, -0.4, 0.08, 0.25, black)
        case "light":
            box(-0.5, -1.2, 0.5, 1.2, black)
            on = int(rng.integers(3))
            for i, colour in enumerate(((235, 60, 50), (240, 180, 50), (70, 220, 120))):
                dim = mix(colour, black, 0.0 if i == on else 0.75)
                p.disc((x, top + (0.75 - 0.75 * i) * size, z), 0.3 * size, 0.3 * size, dim, SIGN)
        case _:
            ground_colour = pick(rng, (blue, (28, 104, 70), white))
            ink = black if ground_colour == white else white
            box(-1.6, -0.9, 1.6, 0.9, ink)
            box(-1.5, -0.8, 1.5, 0.8, ground_colour)
            for row in (0.4, -0.05, -0.5):
                box(-1.25, row, rng.uniform(-0.2, 1.2), row + 0.2, ink)


def vehicle(p: Painter, x: float, z: float, heading: float, kind: str) -> None:
    """A side view drawn out to the vehicle's width. Heading 0 drives away from the camera, in radians."""
    rng = p.rng
    side, sin, cos = VEHICLES[kind], math.sin(heading), math.cos(heading)
    length, top, belt = side[6][0], side[2][1], side[1][1]
    half = 1.25 if kind == "bus" else 0.95 if kind == "van" else rng.uniform(0.82, 0.9)
    paint, glass = vary(rng, pick(rng, PAINTS)), vary(rng, (44, 52, 60), 10)
    if kind == "bus":
        paint = vary(rng, pick(rng, ((170, 30, 34), (40, 90, 120), (216, 210, 196))))

    def place(u: float, v: float, w: float) -> Point:
        w *= half * (1 - 0.2 * max(0.0, (v - belt) / (top - belt)) * (kind not in ("bus", "van")))
        u -= length / 2
        return x + w * cos + u * sin, v, z + u * cos - w * sin

    def across(i: int, colour: Colour, u0: float = 0, u1: float = 1, w0: float = -1, w1: float = 1) -> bool:
        """Paint part of the panel over edge `i` of the side view: u along the edge, w across."""
        (ua, va), (ub, vb) = side[i], side[i + 1]
        (ua, va), (ub, vb) = ((ua + (ub - ua) * t, va + (vb - va) * t) for t in (u0, u1))
        nu, nv = va - vb, ub - ua
        n = math.hypot(nu, nv) or 1
        light = p.weather.light(nu / n * sin, nv / n, nu / n * cos)
        panel = [place(ua, va, w0), place(ub, vb, w0), place(ub, vb, w1), place(ua, va, w1)]
        return p.polygon(panel, colour, CAR, light, True)

    corners = [place(u, 0, w) for u, w in ((0, -1), (0, 1), (length, 1), (length, -1))]
    p.shadow([(c[0], c[2]) for c in corners], top * 0.8)
    p.polygon([(a, 0.12, c) for a, _, c in corners], (18, 18, 20), CAR)
    night = p.weather.dim
    if across(5, mix(paint, BLACK, 0.15)):  # front: grille, bumper, lamps, plate
        across(5, (30, 30, 32), 0.25, 0.6, -0.5, 0.5)
        across(5, (210, 208, 190), 0.65, 0.85, -0.28, 0.28)
        for w in (-0.95, 0.6):
            across(5, (255, 255, 236) if night else (222, 224, 226), 0.2, 0.5, w, w + 0.35)
            p.shine(place(length, 0.65, w + 0.17), 0.45, (230, 220, 190))
    across(4, paint)
    if across(0, mix(paint, BLACK, 0.1)):  # back: bumper, plate, lamps
        across(0, mix(paint, (40, 40, 40), 0.6), 0.0, 0.28)
        across(0, (214, 190, 80), 0.4, 0.58, -0.28, 0.28)
        for w in (-1.0, 0.68):
            across(0, (236, 46, 40) if night else (164, 28, 32), 0.5, 0.95, w, w + 0.32)
            if night:
                p.shine(place(0, 0.8, w + 0.16), 0.3, (190, 30, 24))
    for w in (-1, 1):
        light = p.weather.light(w * cos, 0, -w * sin)
        lower = [place(*side[i], w) for i in (0, 1, 4, 5, 6)]
        if not p.polygon(lower[::w], paint, CAR, light, True):
            continue
        for u in (length * 0.2, length * 0.8):
            for r, colour in ((0.34, (24, 24, 26)), (0.19, (138, 140, 144))):
                rim = [place(u + r * math.cos(t), 0.34 + r * math.sin(t), w * 1.01) for t in CIRCLE]
                p.polygon(rim, colour, CAR)
        cabin = [side[i] for i in (1, 2, 3, 4)]
        p.polygon([place(*corner, w) for corner in cabin], paint, CAR, light)
        if kind != "van":
            middle = sum(u for u, _ in cabin) / 4
            panes = [(middle + 0.86 * (u - middle), belt + 0.06 + 0.74 * (v - belt)) for u, v in cabin]
            p.polygon([place(*corner, w) for corner in panes], glass, CAR, light)
            pillar = ((middle, belt), (middle, top), (middle + 0.12, top), (middle + 0.12, belt))
            p.polygon([place(*corner, w) for corner in pillar], paint, CAR, light)
    for i in (3, 1):
        if across(i, paint):
            across(i, glass, 0.08, 0.9, -0.86, 0.86)
            across(i, mix(glass, p.weather.haze_colour, 0.35), 0.45, 0.85, -0.8, 0.1)
    across(2, paint)


def pedestrian(p: Painter, x: float, z: float, height: float) -> None:
    """A walking figure: legs, coat or shirt, arms, head, perhaps a bag or an umbrella."""
    rng, k = p.rng, height / 1.75
    top, trousers, skin = vary(rng, pick(rng, CLOTHES)), vary(rng, pick(rng, CLOTHES[:5])), pick(rng, SKIN)
    hair, light = pick(rng, HAIR), p.weather.light(0, 0.3, -0.8)
    step, hem = rng.uniform(0.05, 0.28), pick(rng, (0.85, 0.85, 0.55))
    p.shadow([(x - 0.2, z), (x + 0.2, z), (x + 0.2, z + 0.15), (x - 0.2, z + 0.15)], height)

    def limb(points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        p.line([(x + a * k, b * k, z) for a, b in points], width * k, colour, PEDESTRIAN, light)

    for sign in (-1, 1):
        limb(((0.06 * sign, 0.85), (sign * step * 0.7, 0.42), (sign * step, 0.04)), 0.14, trousers)
        limb(((sign * step - 0.04, 0.04), (sign * step + 0.12, 0.04)), 0.07, (32, 28, 28))
        limb(((0.2 * sign, 1.4), (0.25 * sign, 1.1), (0.2 * sign + 0.06, 0.85)), 0.1, mix(top, BLACK, 0.2))
    half = ((0.18, hem), (0.15, 1.1), (0.23, 1.42), (0.08, 1.5))
    torso = [*half, *((-a, b) for a, b in reversed(half))]
    p.polygon([(x + a * k, b * k, z) for a, b in torso], top, PEDESTRIAN, light)
    p.disc((x, 1.63 * k, z), 0.105 * k, 0.135 * k, skin, PEDESTRIAN, light)
    p.disc((x - 0.015 * k, 1.69 * k, z), 0.11 * k, 0.085 * k, hair, PEDESTRIAN, light)
    if rng.random() < 0.3:
        side = pick(rng, (-1, 1))
        bag = ((0.16, 0.7), (0.36, 0.7), (0.34, 1.0), (0.18, 1.0))
        p.polygon([(x + side * a * k, b * k, z) for a, b in bag], pick(rng, CLOTHES), PEDESTRIAN, light)
    if p.weather.kind == "rain" and rng.random() < 0.6:
        cover = ((-0.6, 1.8), (-0.4, 2.05), (0, 2.15), (0.4, 2.05), (0.6, 1.8))
        p.polygon([(x + a * k, b * k, z) for a, b in cover], pick(rng, CLOTHES), PEDESTRIAN, light)


def bicyclist(p: Painter, x: float, z: float, heading: float) -> None:
    """Two wheels, a frame and a rider who leans on the bars. The class covers the wheels' whole discs."""
    rng, (sin, cos) = p.rng, (math.sin(heading), math.cos(heading))
    top, trousers, skin = vary(rng, pick(rng, CLOTHES)), pick(rng, CLOTHES[:5]), pick(rng, SKIN)
    frame, helmet = pick(rng, PAINTS), pick(rng, (*CLOTHES, (230, 230, 226)))
    light, pedal = p.weather.light(0, 0.3, -0.8), rng.uniform(0, 2 * math.pi)

    def place(u: float, v: float, w: float = 0.0) -> Point:
        return x + u * sin + w * cos, v, z + u * cos - w * sin

    def limb(points: Sequence[tuple[float, ...]], width: float, colour: Colour) -> None:
        p.line([place(*q) for q in points], width, colour, BICYCLIST, light)

    corners = [place(u, 0, w) for u, w in ((-0.8, -0.2), (-0.8, 0.2), (0.8, 0.2), (0.8, -0.2))]
    p.shadow([(c[0], c[2]) for c in corners], 1.2)
    for hub in (0.52, -0.52):
        rim = [(hub + 0.34 * math.cos(t), 0.34 + 0.34 * math.sin(t)) for t in CIRCLE]
        p.label_only([place(*q) for q in rim], BICYCLIST)
        limb([*rim, rim[0]], 0.05, (30, 30, 32))
    limb(((-0.52, 0.34), (-0.18, 0.85), (0.4, 0.82), (0.52, 0.34)), 0.045, frame)
    limb(((-0.18, 0.85), (0, 0.32), (0.4, 0.8)), 0.045, frame)
    limb(((0.42, 1.02, -0.28), (0.42, 1.02, 0.28)), 0.05, (40, 40, 42))
    for sign in (-1, 1):
        foot = (0.17 * math.cos(pedal) * sign, 0.3 + 0.17 * math.sin(pedal) * sign, 0.1 * sign)
        knee = (0.22, 0.7 + 0.1 * math.sin(pedal) * sign, 0.12 * sign)
        limb(((-0.15, 0.95, 0.1 * sign), knee, foot), 0.15, trousers)
    for w in (-0.12, 0, 0.12):
        limb(((-0.2, 0.88, w), (0.12, 1.42, w * 1.4)), 0.26, top)
    for sign in (-1, 1):
        arm = (0.1, 1.38, 0.2 * sign), (0.25, 1.15, 0.26 * sign), (0.42, 1.04, 0.25 * sign)
        limb(arm, 0.1, mix(top, BLACK, 0.15))
    p.disc(place(0.2, 1.6), 0.11, 0.14, skin, BICYCLIST, light)
    p.disc(place(0.19, 1.67), 0.125, 0.1, helmet, BICYCLIST, light)


def houses(p: Painter, s: Street, side: int) -> None:
    """A row of houses along one side, wall to wall in a terrace."""
    rng, sign, style, z = p.rng, (-1, 1)[side], s.style[side], 2.0
    usual = rng.uniform(6, 13) if style == "terrace" else rng.uniform(5.5, 9)
    while z < FAR and style != "park":
        end = z + rng.uniform(6, 14)
        height, front = max(3.5, usual + rng.normal(0, 1.8)), sign * (s.line(side) + s.setback[side])
        kind = pick(rng, ("house", "house", "shop", "block")) if style == "terrace" else "house"
        if s.open(z, end):
            p.later(end, building, sign, front, z, end, height, kind)
        z = end + (0 if style == "terrace" else rng.uniform(1, 5))


def gardens(p: Painter, s: Street, side: int) -> None:
    """Fences and hedges between pavement and garden or park; in front of terraces at times a railing."""
    rng, sign, line, z = p.rng, (-1, 1)[side], s.line(side), 3.0
    kind, colour = pick(rng, ("railing", "picket", "board")), vary(rng, pick(rng, FENCES))
    fenced = 0.7 * (rng.random() < 0.75)
    if s.style[side] == "terrace":
        z = rng.uniform(6, 16)
        if rng.random() < 0.3 and s.open(z, z + 9):
            p.later(z + 9, fence, sign * (s.edge[side] + 0.25), z, z + 9, "railing", vary(rng, (110, 112, 112)))
        return
    while z < 75:
        end = z + rng.uniform(7, 16)
        if s.open(z, end) and rng.random() < fenced:
            p.later(end, fence, sign * (line + 0.1), z, end, kind, colour)
        elif s.open(z, end) and rng.random() < 0.6:
            p.later(end, hedge, sign * (line + 0.5), z, end, rng.uniform(0.9, 1.7))
        z = end + rng.uniform(0.5, 2)


def trees(p: Painter, s: Street, side: int) -> None:
    """Trees on the pavement, in gardens or in the park, mostly of one kind."""
    rng, leaf, style = p.rng, pick(p.rng, LEAVES), s.style[side]
    share, near, far = {"terrace": (0.45, 0.8, 0.81), "houses": (0.75, 1, 2), "park": (0.95, 1, 7)}[style]
    start = s.edge[side] if style == "terrace" else s.line(side)
    for z in np.arange(rng.uniform(6, 14), 90, rng.uniform(6, 12)).tolist():
        if rng.random() < share and s.open(z, z):
            x = (-1, 1)[side] * (start + rng.uniform(near, far))
            p.later(z, tree, x, z, rng.uniform(4.5, 9.5), vary(rng, leaf, 8))


def furniture(p: Painter, s: Street, side: int) -> None:
    """Lamp posts and signs at the kerb."""
    rng, sign, kerb = p.rng, (-1, 1)[side], s.edge[side]
    height, reach = rng.uniform(5, 8), -sign * rng.uniform(0.8, 1.8)
    for z in np.arange(rng.uniform(7, 20), 85, rng.uniform(16, 26)).tolist():
        if s.open(z, z):
            p.later(z, lamp_post, sign * (kerb + 0.4), z, height, reach)
    for _ in range(int(rng.integers(1, 4))):
        x, z = sign * (kerb + rng.uniform(0.35, 0.8)), rng.uniform(6, 30)
        if s.open(z, z):
            p.later(z, road_sign, x, z, pick(rng, SIGNS), rng.uniform(0.34, 0.52))


def people(p: Painter, s: Street, side: int) -> None:
    """Pedestrians on the pavement, alone or in pairs."""
    rng = p.rng
    for _ in range(int(rng.integers(0, 4))):
        x, z = (-1, 1)[side] * rng.uniform(s.edge[side] + 0.6, s.line(side) - 0.4), rng.uniform(7, 36)
        for i in range(int(rng.integers(1, 3))):
            p.later(z + 0.2 * i, pedestrian, x + 0.6 * i, z + 0.2 * i, rng.uniform(1.5, 1.9))


def parked(p: Painter, s: Street, side: int) -> None:
    """A lane of parked cars, most of them in the direction of traffic."""
    rng, x, z = p.rng, (-1, 1)[side] * (s.edge[side] - 1.05), p.rng.uniform(7, 16)
    while s.parking[side] and z < 80:
        heading = math.pi * (side if rng.random() < 0.85 else 1 - side) + rng.normal(0, 0.02)
        if s.open(z - 3, z + 3) and rng.random() < 0.5:
            p.later(z, vehicle, x, z, heading, pick(rng, ("hatchback", "saloon", "estate", "van")))
        z += rng.uniform(5.6, 7)


def traffic(p: Painter, s: Street) -> None:
    """What moves on the road: cars ahead, oncoming and crossing, bicyclists, people who cross."""
    rng = p.rng
    kinds = ("hatchback", "saloon", "estate", "hatchback", "saloon", "van", "bus")
    if rng.random() < 0.6:
        z = rng.uniform(9, 35)
        p.later(z, vehicle, rng.normal(0, 0.2), z, rng.normal(0, 0.03), pick(rng, kinds))
    z, lane = rng.uniform(8, 25), (s.centre + s.edge[1] - 2.1 * s.parking[1]) / 2
    for _ in range(int(rng.integers(0, 4))):
        p.later(z, vehicle, lane + rng.normal(0, 0.2), z, math.pi + rng.normal(0, 0.03), pick(rng, kinds))
        z += rng.uniform(12, 30)
    if s.junction[0] < 60 and rng.random() < 0.5:
        x, z = pick(rng, (-1, 1)) * rng.uniform(6, 14), sum(s.junction) / 2
        p.later(z, vehicle, x, z, pick(rng, (-1, 1)) * math.pi / 2 + rng.normal(0, 0.1), pick(rng, kinds[:6]))
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            side, z = int(rng.integers(2)), rng.uniform(7, 30)
            x = (-1, 1)[side] * (s.edge[side] - 2.1 * s.parking[side] - rng.uniform(0.4, 0.8))
            heading = math.pi * side + rng.normal(0, 0.15)
            if rng.random() < 0.25:  # crosses
                x, heading = rng.uniform(-4, 4), math.pi / 2 * pick(rng, (-1, 1)) + rng.normal(0, 0.3)
            p.later(z, bicyclist, x, z, heading)
    if rng.random() < 0.25:
        z = rng.uniform(9, 30)
        p.later(z, pedestrian, rng.uniform(-3, 5), z, rng.uniform(1.5, 1.9))


def develop(p: Painter) -> tuple[np.ndarray, np.ndarray]:
    """From canvas to picture and label: surface texture, ground shadows, air, lens, sensor, void."""
    rng, w, (height, width) = p.rng, p.weather, p.size
    label = np.asarray(p.image.getchannel("A"))[::OVERSAMPLING, ::OVERSAMPLING].copy()
    picture = np.asarray(p.image.convert("RGB").reduce(OVERSAMPLING), np.float32)
    v = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    u = (np.arange(width, dtype=np.float32) + 0.5) / width * ASPECT
    surfaces(p, picture, label, u, v)
    if w.dim:
        lamps = p.glow.filter(ImageFilter.GaussianBlur(1.6)).resize((width, height), Image.Resampling.BICUBIC)
        picture += 0.45 * np.asarray(lamps, np.float32)
    corner = (v - 0.5) ** 2 + (u / ASPECT - 0.5) ** 2
    picture *= np.array(w.gain, np.float32) * (1 - rng.uniform(0.2, 0.7) * corner[..., None])
    leave_void(p, picture, label)
    blur, noise = rng.uniform(0.1, 0.5) * height / 180, np.float32(rng.uniform(1.5, 5))
    soft = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(blur))
    white = np.frombuffer(rng.bytes(picture.size), np.int8).reshape(picture.shape)
    picture = np.asarray(soft) + noise / 74 * white  # 74: the deviation of a random byte
    return np.clip(picture, 0, 255).astype(np.uint8), label


def surfaces(p: Painter, picture: np.ndarray, label: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
    """Grain on all of `picture`; on its ground wear, shadows, haze and, in rain, reflections; in place."""
    w, height = p.weather, len(v)
    down, right = p.rng.integers(0, 512, 2)
    grain = GRAIN[label] * look_up(190 * v + down, 190 * u + right)
    top = max(0, min(height - 2, int(p.vy * height) + 1))
    z = p.focal * p.height / (v[top:] - p.vy).clip(0.004)  # by row: the roll is too small to matter here
    x = (u - p.vx) * z / p.focal - p.bend * z * z
    road, paving = label[top:] == ROAD, label[top:] == PAVEMENT
    flat = road | paving
    rough = 0.055 * look_up(60 * z + down, 60 * x + right) * np.exp(-z / 14)
    rough += 0.05 * look_up(6 * z + down, 6 * x + right) * np.exp(-z / 60)
    tracks = 0.05 * np.cos(2 * math.pi * x / 1.7) * np.exp(-((x / 4) ** 2)) * road
    shade = np.asarray(p.shade.reduce(OVERSAMPLING), np.float32)[top:] / 255
    grain[top:] += (rough - tracks - shade) * flat
    picture *= 1 + grain[..., None]
    below = picture[top:]
    haze = (1 - np.exp(-w.haze * z)) * flat
    below += haze[..., None] * (np.array(w.haze_colour, np.float32) - below)
    if w.kind == "rain":  # a wet road mirrors what stands above it
        mirror = picture[np.clip(2 * top - np.arange(top, height), 0, height - 1)]
        wet = 0.32 * flat * np.clip(0.7 + 0.4 * look_up(9 * z, 9 * x), 0, 1)
        below += wet[..., None] * (mirror - below)


def leave_void(p: Painter, picture: np.ndarray, label: np.ndarray) -> None:
    """Void where an annotator leaves it: a band along some borders, and the camera car's bonnet; in place."""
    height, width = label.shape
    band, large = max(1, round(height / 180)), LARGE[label]
    border = np.zeros(label.shape, bool)
    border[:-band] |= (label[:-band] != label[band:]) & large[:-band] & large[band:]
    border[:, :-band] |= (label[:, :-band] != label[:, band:]) & large[:, :-band] & large[:, band:]
    v, u = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    label[border & (look_up(150 * v, 200 * u + p.rng.integers(512)) > 0.45)] = IGNORE_INDEX
    rise, centre = p.rng.uniform(0.0, 0.05), p.rng.uniform(0.4, 0.6)
    bonnet = v > 1 - rise + 0.12 * (u - centre) ** 2
    label[bonnet] = IGNORE_INDEX
    picture[bonnet] = np.array(pick(p.rng, PAINTS)) * 0.5


def paint(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One street as picture uint8 [H, W, 3] and label uint8 [H, W]."""
    painter, street = Painter(rng, Weather.sample(rng), size), Street.sample(rng)
    sky(painter)
    ground(painter, street)
    backdrop(painter)
    traffic(painter, street)
    for side in (0, 1):
        for place in (houses, gardens, trees, furniture, people, parked):
            place(painter, street, side)
    painter.paint_queue()
    return develop(painter)


class StreetScenes(Dataset[tuple[Tensor, Tensor]]):
    """Generated street scenes with CamVid's 11 classes; one (split, seed, index), one street.

    Args:
        split: `train`, `val` or `test`; splits share no scene.
        size: height and width in pixels, each at least 16; made for 3:4, other shapes stretch it.
        length: number of scenes; default 400 for train, 100 for val and test.
        seed: another seed, another town.

    An item is `(image uint8 [3, H, W], label uint8 [H, W])`, labels 0..10 and 11 for void.

    Raises:
        InputError: unknown split, a side below 16, or a negative length or seed.
    """

    name = "scenes"
    classes = CLASSES
    palette = PALETTE
    ignore_index = IGNORE_INDEX
    num_classes = len(CLASSES)

    def __init__(
        self,
        split: str = "train",
        size: tuple[int, int] = (180, 240),
        length: int | None = None,
        seed: int = 0,
    ):
        if split not in LENGTHS:
            raise InputError(f"split {split!r} of StreetScenes is unknown: choose one of {', '.join(LENGTHS)}.")
        if len(size) != 2 or min(size) < 16:
            raise InputError(f"size {tuple(size)} is too small: give a height and width of at least 16 pixels.")
        if seed < 0 or (length is not None and length < 0):
            raise InputError(f"length {length} and seed {seed} must not be negative.")
        self.split, self.size, self.seed = split, (int(size[0]), int(size[1])), seed
        self.ids = [f"{split}_{index:05d}" for index in range(LENGTHS[split] if length is None else length)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} is not there: the {self.split} split has {len(self)}.")
        rng = np.random.default_rng((self.seed, list(LENGTHS).index(self.split), index % len(self)))
        image, label = paint(rng, self.size)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(label)
