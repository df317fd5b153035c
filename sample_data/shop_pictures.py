"""Small product pictures for the sample shop: a shape by kind of product, the product's colour, and its pattern.

Shapes are data: lists of parts on a 64 by 64 grid, drawn back to front. It is no drawing library.
"""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Part = tuple[str, str, tuple[float, ...], float]  # role, primitive, coordinates, width or radius

SIZE = 64
SCALE = 4  # drawn large, then shrunk, for smooth edges
WIDE = SIZE * SCALE

ROLES: dict[str, Colour] = {
    "wood": (176, 128, 84),
    "metal": (172, 174, 178),
    "brass": (190, 156, 92),
    "white": (248, 246, 240),
    "dark": (58, 56, 60),
    "glow": (255, 222, 130),
    "flame": (246, 160, 52),
    "leaf": (96, 138, 88),
    "bloom": (226, 120, 120),
    "sand": (198, 180, 148),
}
BACKGROUND: Colour = (246, 243, 237)
SHADOW: Colour = (222, 217, 208)

FLAT = {"pendant", "plate", "small_plate", "rug", "round_rug", "runner", "platter"}  # seen from above, or hanging

_STEMS: list[Part] = [
    ("leaf", "line", (32, 26, 26, 6), 1.6),
    ("leaf", "line", (32, 26, 39, 8), 1.6),
    ("leaf", "ellipse", (26, 13, 31, 17), 0),
    ("leaf", "ellipse", (34, 13, 39, 17), 0),
    ("bloom", "ellipse", (21, 2, 30, 11), 0),
    ("bloom", "ellipse", (35, 4, 44, 13), 0),
]
_FLAME: list[Part] = [
    ("dark", "line", (32, 22, 32, 16), 1.2),
    ("flame", "blob", (32, 3, 37, 13, 32, 19, 27, 13), 0),
    ("glow", "blob", (32, 9, 34.5, 14, 32, 18, 29.5, 14), 0),
]
_LACES: list[Part] = [("white", "line", (x, y, x + 4, y + 4), 1.6) for x, y in ((30, 24), (34, 27), (38, 30))]
_FRINGE: list[Part] = [
    ("sand", "line", (x0, y, x1, y + 1), 1.3)
    for y, left in ((20, 13.2), (26, 11.2), (32, 9.2), (38, 7.2), (44, 5.2))
    for x0, x1 in ((left - 4, left), (SIZE - left, SIZE + 4 - left))
]
_RAYS = [(32 + 31 * math.cos(a * math.pi / 16), 34 + 21.5 * math.sin(a * math.pi / 16)) for a in range(32)]

SHAPES: dict[str, list[Part]] = {
    "mug": [
        ("deep", "ring", (37, 23, 57, 46), 5),
        ("body", "round", (12, 17, 45, 55), 6),
        ("deep", "ellipse", (12, 12, 45, 23), 0),
        ("dark", "ellipse", (16, 14.5, 41, 21.5), 0),
    ],
    "tall_mug": [
        ("deep", "ring", (36, 24, 54, 44), 4.5),
        ("body", "poly", (15, 10, 44, 10, 40, 57, 19, 57), 0),
        ("deep", "ellipse", (15, 6, 44, 15), 0),
        ("dark", "ellipse", (19, 8, 40, 13.5), 0),
    ],
    "cup": [
        ("pale", "ellipse", (6, 46, 58, 58), 0),
        ("deep", "ring", (39, 27, 55, 43), 4),
        ("body", "blob", (14, 22, 46, 22, 46, 44, 38, 53, 22, 53, 14, 44), 0),
        ("deep", "ellipse", (15, 20, 45, 29), 0),
        ("dark", "ellipse", (19, 22, 41, 28), 0),
    ],
    "plate": [("body", "ellipse", (5, 5, 59, 59), 0), ("pale", "ellipse", (16, 16, 48, 48), 0)],
    "small_plate": [
        ("body", "ellipse", (12, 12, 52, 52), 0),
        ("pale", "ellipse", (20, 20, 44, 44), 0),
    ],
    "platter": [("body", "ellipse", (3, 16, 61, 50), 0), ("pale", "ellipse", (13, 23, 51, 43), 0)],
    "vase": [
        *_STEMS,
        ("body", "blob", (25, 22, 39, 22, 38, 30, 48, 40, 45, 60, 19, 60, 16, 40, 26, 30), 0),
        ("deep", "ellipse", (25.5, 21, 38.5, 25.5), 0),
    ],
    "bud_vase": [
        *_STEMS,
        ("body", "round", (28, 24, 36, 42), 2),
        ("body", "ellipse", (15, 34, 49, 60), 0),
        ("deep", "ellipse", (27, 22.5, 37, 26.5), 0),
    ],
    "table_lamp": [
        ("brass", "line", (32, 34, 32, 55), 3.2),
        ("wood", "blob", (32, 40, 39, 47, 32, 55, 25, 47), 0),
        ("wood", "round", (21, 54, 43, 59), 2),
        ("glow", "ellipse", (16, 31, 48, 39), 0),
        ("body", "poly", (22, 7, 42, 7, 52, 35, 12, 35), 0),
    ],
    "floor_lamp": [
        ("wood", "line", (32, 22, 18, 61), 2.2),
        ("wood", "line", (32, 22, 46, 61), 2.2),
        ("wood", "line", (32, 22, 32, 59), 2.2),
        ("glow", "ellipse", (19, 21, 45, 27), 0),
        ("body", "poly", (24, 4, 40, 4, 46, 24, 18, 24), 0),
    ],
    "pendant": [
        ("dark", "line", (32, 0, 32, 18), 1.4),
        ("brass", "round", (28.5, 14, 35.5, 21), 1.5),
        ("glow", "ellipse", (25, 40, 39, 53), 0),
        ("body", "dome", (8, 18, 56, 74), 0),
    ],
    "cushion": [
        ("body", "poly", (6, 8, 20, 11, 44, 11, 58, 8, 54, 21, 54, 44, 58, 57, 44, 54, 20, 54, 6, 57, 10, 44, 10, 21),
         0),
        ("deep", "line", (26, 31, 38, 31), 0.9),
        ("deep", "line", (32, 25, 32, 38), 0.9),
    ],
    "bolster": [
        ("body", "round", (5, 20, 59, 48), 12),
        ("deep", "ellipse", (46, 20, 59, 48), 0),
        ("pale", "ellipse", (51, 31, 55, 37), 0),
    ],
    "round_cushion": [
        ("body", "ellipse", (7, 9, 57, 57), 0),
        *[("deep", "line", (32, 33, x, y), 0.9) for x in (20, 44) for y in (26, 41)],
        ("deep", "line", (32, 19, 32, 47), 0.9),
        ("deep", "ellipse", (29, 30, 35, 36), 0),
    ],
    "rug": [
        *_FRINGE,
        ("deep", "poly", (14, 17, 50, 17, 59, 49, 5, 49), 0),
        ("body", "poly", (17, 20, 47, 20, 54, 46, 10, 46), 0),
    ],
    "round_rug": [
        *[("sand", "line", (32, 34, x, y), 1.3) for x, y in _RAYS],
        ("deep", "ellipse", (4, 16, 60, 52), 0),
        ("pale", "ellipse", (6, 18, 58, 50), 0),
        ("body", "ellipse", (10, 20.5, 54, 47.5), 0),
    ],
    "runner": [
        *[("sand", "line", (x, y, x, y + 4), 1.3) for x in (21, 25, 29, 33, 37, 41) for y in (1, 59)],
        ("deep", "poly", (19, 5, 43, 5, 43, 59, 19, 59), 0),
        ("body", "poly", (22, 9, 40, 9, 40, 55, 22, 55), 0),
    ],
    "jar_candle": [
        *_FLAME,
        ("body", "round", (17, 21, 47, 58), 4),
        ("pale", "ellipse", (17, 18, 47, 26), 0),
        ("white", "round", (23, 36, 41, 48), 1.5),
        ("dark", "line", (27, 42, 37, 42), 1.1),
    ],
    "pillar": [
        *_FLAME,
        ("wood", "round", (14, 54, 50, 60), 2),
        ("body", "round", (22, 22, 42, 55), 2),
        ("pale", "ellipse", (22, 19.5, 42, 25), 0),
    ],
    "t_shirt": [
        ("body", "poly", (22, 10, 42, 10, 60, 22, 53, 32, 46, 28, 46, 58, 18, 58, 18, 28, 11, 32, 4, 22), 0),
        ("deep", "blob", (23, 9.5, 41, 9.5, 37, 17, 27, 17), 0),
    ],
    "shirt": [
        ("body", "poly", (22, 8, 42, 8, 52, 14, 61, 50, 53, 53, 46, 30, 46, 59, 18, 59, 18, 30, 11, 53, 3, 50, 12, 14),
         0),
        ("deep", "poly", (23, 7, 32, 16, 25, 20, 19, 10), 0),
        ("deep", "poly", (41, 7, 32, 16, 39, 20, 45, 10), 0),
        ("deep", "line", (32, 16, 32, 59), 1),
        *[("white", "ellipse", (31, y, 33.6, y + 2.6), 0) for y in (22, 31, 40, 49)],
    ],
    "dress": [
        ("body", "poly", (23, 5, 27, 5, 28, 12, 36, 12, 37, 5, 41, 5, 44, 15, 41, 27, 56, 57, 8, 57, 23, 27, 20, 15),
         0),
        ("deep", "line", (23.5, 27, 40.5, 27), 2.6),
    ],
    "maxi_dress": [
        ("body", "poly", (24, 4, 32, 13, 40, 4, 54, 12, 50, 20, 43, 16, 40, 25, 51, 61, 13, 61, 24, 25, 21, 16, 14, 20,
                          10, 12), 0),
        ("deep", "line", (24, 25, 40, 25), 2.6),
        ("deep", "line", (39, 25, 43, 38), 1.8),
    ],
    "trainers": [
        ("body", "blob", (7, 22, 14, 20, 24, 26, 32, 19, 44, 32, 60, 37, 60, 49, 5, 49, 5, 34), 0),
        ("white", "round", (4, 45, 61, 53), 4),
        ("deep", "poly", (6, 28, 13, 30, 13, 44, 6, 44), 0),
        *_LACES,
    ],
    "high_tops": [
        ("body", "poly", (9, 8, 29, 8, 31, 24, 45, 34, 57, 37, 60, 50, 7, 50), 0),
        ("white", "round", (5, 47, 62, 55), 4),
        ("white", "blob", (48, 34, 58, 36, 62, 48, 50, 48), 0),
        ("white", "ellipse", (12, 16, 21, 25), 0),
        *[("white", "line", (26, y, 31.5, y), 1.6) for y in (12, 17, 22)],
        *[("white", "line", (x, y, x + 4, y + 3), 1.6) for x, y in ((31, 26), (35, 30))],
    ],
    "beanie": [
        ("pale", "ellipse", (25, 3, 39, 17), 0),
        ("body", "dome", (10, 11, 54, 83), 0),
        ("deep", "round", (7, 42, 57, 55), 4),
        *[("body_line", "line", (x, 44, x, 53), 0.9) for x in (14, 20, 26, 32, 38, 44, 50)],
    ],
    "sun_hat": [
        ("deep", "ellipse", (2, 34, 62, 54), 0),
        ("body", "blob", (18, 14, 46, 14, 49, 32, 48, 46, 16, 46, 15, 32), 0),
        ("white", "poly", (16.5, 36, 47.5, 36, 47, 42, 17, 42), 0),
    ],
    "cap": [
        ("body", "dome", (8, 14, 48, 72), 0),
        ("deep", "blob", (30, 39, 48, 37, 63, 47, 58, 50, 44, 45, 28, 46), 0),
        ("deep", "ellipse", (25.5, 11.5, 30.5, 16), 0),
        ("body_line", "line", (28, 15, 28, 42), 0.9),
    ],
    "jacket": [
        ("body", "poly", (22, 8, 42, 8, 54, 15, 62, 52, 52, 54, 47, 32, 47, 60, 17, 60, 17, 32, 12, 54, 2, 52, 10, 15),
         0),
        ("deep", "round", (23, 5, 41, 14), 3),
        ("white", "line", (32, 6, 32, 59), 1.6),
        ("deep", "line", (21, 44, 28, 48), 2),
        ("deep", "line", (43, 44, 36, 48), 2),
        ("deep", "poly", (17, 56, 47, 56, 47, 60, 17, 60), 0),
    ],
    "raincoat": [
        ("deep", "blob", (20, 16, 22, 2, 42, 2, 44, 16, 38, 20, 26, 20), 0),
        ("dark", "ellipse", (26, 5, 38, 17), 0),
        ("body", "poly", (20, 14, 32, 20, 44, 14, 53, 18, 61, 48, 53, 51, 47, 36, 51, 62, 13, 62, 17, 36, 11, 51, 3, 48,
                          11, 18), 0),
        ("deep", "line", (32, 20, 32, 62), 1.6),
        ("deep", "round", (18, 44, 28, 53), 1),
        ("deep", "round", (36, 44, 46, 53), 1),
    ],
    "backpack": [
        ("deep", "ring", (25, 2, 39, 16), 3),
        ("deep", "round", (9, 30, 18, 54), 4),
        ("deep", "round", (46, 30, 55, 54), 4),
        ("body", "round", (14, 8, 50, 60), 11),
        ("pale", "line", (19, 25, 45, 25), 1.5),
        ("deep", "round", (19, 34, 45, 55), 4),
        ("white", "line", (23, 40, 41, 40), 1.5),
    ],
    "rucksack": [
        ("pale", "round", (11, 2, 53, 13), 5),
        ("body", "round", (14, 12, 50, 61), 6),
        ("deep", "blob", (12, 12, 52, 12, 53, 30, 44, 33, 20, 33, 11, 30), 0),
        ("wood", "line", (23, 14, 23, 44), 2.2),
        ("wood", "line", (41, 14, 41, 44), 2.2),
        ("brass", "round", (21, 37, 25, 42), 0.5),
        ("brass", "round", (39, 37, 43, 42), 0.5),
    ],
    "dome_tent": [
        ("leaf", "ellipse", (1, 47, 63, 58), 0),
        ("body", "dome", (5, 11, 59, 95), 0),
        ("dark", "poly", (32, 20, 43, 53, 21, 53), 0),
        ("pale", "poly", (32, 20, 21, 53, 17, 53), 0),
        ("deep", "line", (5, 53, 59, 53), 1.4),
    ],
    "ridge_tent": [
        ("leaf", "ellipse", (1, 46, 63, 59), 0),
        ("body", "poly", (22, 12, 50, 9, 62, 46, 40, 54), 0),
        ("deep", "poly", (22, 12, 40, 54, 3, 54), 0),
        ("dark", "poly", (22, 22, 30, 54, 13, 54), 0),
        ("wood", "line", (22, 6, 22, 54), 1.4),
    ],
    "mummy_bag": [
        ("body", "blob", (32, 0, 50, 3, 50, 18, 47, 40, 43, 62, 21, 62, 17, 40, 14, 18, 14, 3), 0),
        ("dark", "ellipse", (23, 7, 41, 23), 0),
        ("white", "blob", (23, 12, 32, 5, 41, 12, 41, 20, 23, 20), 0),
        *[("body_line", "line", (17 + i, y, 47 - i, y), 0.9) for i, y in ((0, 30), (1, 37), (2, 44), (3, 51))],
        ("white", "line", (41, 23, 39, 50), 1.3),
    ],
    "quilt": [
        ("white", "round", (12, 3, 52, 17), 4),
        ("body", "round", (10, 11, 54, 61), 4),
        ("deep", "poly", (10, 14, 54, 14, 54, 22, 10, 22), 0),
        *[("body_line", "line", (11, y, 53, y), 0.9) for y in (32, 42, 52)],
        *[("body_line", "line", (x, 23, x, 60), 0.9) for x in (25, 39)],
    ],
    "bottle": [
        ("dark", "ring", (26, 1, 38, 13), 2.4),
        ("metal", "round", (26, 9, 38, 17), 1.5),
        ("body", "blob", (26, 15, 38, 15, 46, 23, 46, 62, 18, 62, 18, 23), 0),
        ("metal", "line", (19.5, 56, 44.5, 56), 1.6),
    ],
    "flask": [
        ("metal", "round", (22, 4, 42, 19), 3),
        ("deep", "ring", (40, 26, 55, 48), 3.4),
        ("body", "round", (19, 17, 45, 61), 5),
        ("metal", "poly", (19, 19, 45, 19, 45, 22, 19, 22), 0),
    ],
}  # fmt: skip


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """Colour a with this share of b."""
    r, g, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


def is_pale(colour: Colour) -> bool:
    return sum(colour) > 450


@cache
def _shade() -> Image.Image:
    """A grey wash, lighter on the left, that makes flat shapes look round."""
    ramp = Image.linear_gradient("L").rotate(90).resize((WIDE, WIDE))
    return Image.merge("RGB", [ramp.point([255 - v // 6 for v in range(256)])] * 3)


@cache
def _cloth(colour: Colour, pattern: str) -> Image.Image:
    """A sheet of patterned, shaded material."""
    accent = mixed(colour, (60, 40, 50), 0.55) if is_pale(colour) else mixed(colour, (255, 250, 240), 0.75)
    sheet = Image.new("RGB", (WIDE, WIDE), colour)
    pen = ImageDraw.Draw(sheet)
    if pattern == "stripes":
        for y in range(8, WIDE, 32):
            pen.rectangle((0, y, WIDE, y + 12), fill=accent)
    elif pattern == "checks":
        for at in range(4, WIDE, 40):
            pen.rectangle((at, 0, at + 14, WIDE), fill=mixed(colour, accent, 0.45))
        for at in range(4, WIDE, 40):
            pen.rectangle((0, at, WIDE, at + 14), fill=mixed(colour, accent, 0.45))
            for other in range(4, WIDE, 40):
                pen.rectangle((other, at, other + 14, at + 14), fill=accent)
    elif pattern in ("dots", "flowers"):
        if pattern == "flowers":
            accent = ROLES["bloom"] if sum(colour) > 600 else mixed(colour, (255, 250, 240), 0.85)
        for row, y in enumerate(range(8, WIDE, 32)):
            for x in range(8 + 18 * (row % 2), WIDE, 36):
                _motif(pen, x, y, pattern, accent)
    return ImageChops.multiply(sheet, _shade())


def _motif(pen: ImageDraw.ImageDraw, x: float, y: float, pattern: str, accent: Colour) -> None:
    if pattern == "dots":
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=accent)
        return
    for dx, dy in ((0, -8), (8, -2), (5, 7), (-5, 7), (-8, -2)):
        pen.ellipse((x + dx - 6, y + dy - 6, x + dx + 6, y + dy + 6), fill=accent)
    pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=ROLES["flame"])


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The closed outline with its corners cut three times (Chaikin's scheme)."""
    for _ in range(3):
        pairs = zip(points, points[1:] + points[:1], strict=True)
        points = [
            ((1 - t) * a[0] + t * b[0], (1 - t) * a[1] + t * b[1]) for a, b in pairs for t in (0.2, 0.8)
        ]  # fmt: skip
    return points


def _draw(pen: ImageDraw.ImageDraw, part: Part, flip: bool, fill: object, edge: object) -> None:
    """One part in one fill, with a thin edge."""
    _, primitive, grid, width = part
    points = [((SIZE - x if flip else x) * SCALE, y * SCALE) for x, y in zip(grid[::2], grid[1::2], strict=True)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    box = (min(xs), min(ys), max(xs), max(ys))
    thin = SCALE
    if primitive == "line":
        pen.line(points, fill=fill, width=round(width * SCALE))
    elif primitive == "ring":
        pen.ellipse(box, outline=edge, width=round((width + 1) * SCALE))
        inner = tuple(v + d for v, d in zip(box, (2, 2, -2, -2), strict=True))
        pen.ellipse(inner, outline=fill, width=round((width - 0.5) * SCALE))
    elif primitive == "ellipse":
        pen.ellipse(box, fill=fill, outline=edge, width=thin)
    elif primitive == "dome":
        pen.chord(box, 180, 360, fill=fill, outline=edge, width=thin)
    elif primitive == "round":
        pen.rounded_rectangle(box, radius=width * SCALE, fill=fill, outline=edge, width=thin)
    else:
        outline = _smoothed(points) if primitive == "blob" else points
        pen.polygon(outline, fill=fill)
        pen.line([*outline, outline[0]], fill=edge, width=thin, joint="curve")


def picture(shape: str, colour: Colour, pattern: str, flip: bool) -> Image.Image:
    """A 64 by 64 palette picture of one product."""
    dark = mixed(colour, (20, 16, 24), 0.45) if sum(colour) > 200 else mixed(colour, (255, 255, 255), 0.3)
    roles = ROLES | {"deep": mixed(colour, dark, 0.5), "pale": mixed(colour, (255, 255, 255), 0.5), "body_line": dark}
    canvas = Image.new("RGB", (WIDE, WIDE), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    if shape not in FLAT:
        floor = max(max(grid[1::2]) for _, kind, grid, _ in SHAPES[shape] if kind != "dome") * SCALE
        pen.ellipse((8 * SCALE, floor - 6 * SCALE, 56 * SCALE, min(floor + 3 * SCALE, WIDE - 2)), fill=SHADOW)
    for part in SHAPES[shape]:
        if part[0] == "body":
            mask = Image.new("L", (WIDE, WIDE), 0)
            _draw(ImageDraw.Draw(mask), part, flip, 255, 255)
            canvas.paste(_cloth(colour, pattern), (0, 0), mask)
            _draw(pen, part, flip, None, dark)
        else:
            fill = roles[part[0]]
            _draw(pen, part, flip, fill, mixed(fill, (30, 26, 30), 0.3))
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    return small.quantize(16, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
