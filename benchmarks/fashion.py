"""Similar fashion products by picture, by title and by both: label agreement of neighbours, and a contact sheet.

Run: python benchmarks/fashion.py --data FOLDER --encoder FOLDER --out FOLDER [--tiny]

FOLDER of --data holds products.csv.gz and images_128px.parquet (id, jpeg); --encoder is a transformers vision model.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import header, write_results
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Items
from recotransfer.encoders import Fusion, PretrainedImage, SentenceText, encode_items

LABELS = ("articleType", "baseColour")
TYPES = ("Tshirts", "Sports Shoes", "Watches", "Handbags", "Sunglasses", "Kurtas", "Heels", "Jeans")
TILE, NEAR = 128, 6


def read(data: Path, tiny: bool) -> tuple[Items, pd.DataFrame]:
    pictures = pd.read_parquet(data / "images_128px.parquet")
    products = pd.read_csv(data / "products.csv.gz", dtype={"id": str})
    frame = pictures.merge(products, on="id", how="left").reset_index(drop=True)
    if tiny:
        frame = frame.sample(300, random_state=0).reset_index(drop=True)
    columns = pd.DataFrame({"title": frame["productDisplayName"], "image": frame["jpeg"]})
    return Items(IdMap(frame["id"]), columns, {"title": "text", "image": "image"}), frame


def neighbours(vectors: NDArray[np.float32], queries: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(len(queries), k) positions of the nearest other items by cosine, best first."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    out = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), 1024):
        batch = queries[start : start + 1024]
        scores = unit[batch] @ unit.T
        scores[np.arange(len(batch)), batch] = -np.inf
        top = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
        out[start : start + 1024] = np.take_along_axis(top, order, axis=1)
    return out


def agreement(near: NDArray[np.int64], codes: NDArray[np.int64]) -> float:
    """The share of neighbours with the query's label."""
    labelled = codes >= 0
    return float((codes[near] == codes[:, None])[labelled].mean())


def floor(codes: NDArray[np.int64]) -> float:
    """The expected share for random neighbours."""
    counts = np.bincount(codes[codes >= 0]).astype(float)
    return float((counts * (counts - 1)).sum() / (counts.sum() * (len(codes) - 1)))


def pick_queries(frame: pd.DataFrame) -> list[int]:
    """One random product of each type in TYPES, or of any type if that one is absent."""
    rng = np.random.default_rng(7)
    found = [np.flatnonzero(frame["articleType"] == kind) for kind in TYPES]
    return [int(rng.choice(rows if len(rows) else len(frame))) for rows in found]


class Sheet:
    """A contact sheet: per query a band with the product and one row of neighbours per kind of embedding."""

    CELL, ROW, SIDE, GAP, TOP, COLUMNS = TILE + 14, TILE + 34, 58, 26, 52, 2

    def __init__(self, frame: pd.DataFrame, bands: int, ways: int) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self.frame, self.ways = frame, ways
        self.font, self.bold = ImageFont.load_default(11), ImageFont.load_default(14)
        self.width = (1 + NEAR) * self.CELL + self.SIDE + 36
        self.depth = -(-bands // self.COLUMNS)
        height = self.TOP + self.depth * (ways * self.ROW + self.GAP)
        self.image = Image.new("RGB", (self.COLUMNS * self.width, height), "white")
        self.draw = ImageDraw.Draw(self.image)
        title = "Similar products: the query at the left, its six nearest by picture, by title and by both"
        self.draw.text((10, 8), title, "black", self.bold)
        self.draw.text((10, 28), "Green frame: same article type as the query; red: another type", "#555555", self.font)

    def tile(self, at: int, x: int, y: int, edge: str | None = None) -> None:
        """One product's picture and title, framed in `edge`."""
        from PIL import Image

        picture = Image.open(io.BytesIO(self.frame["jpeg"][at])).convert("RGB").resize((TILE, TILE))
        self.image.paste(picture, (x, y))
        if edge:
            self.draw.rectangle((x - 2, y - 2, x + TILE + 1, y + TILE + 1), outline=edge, width=2)
        words = str(self.frame["productDisplayName"][at])
        label = "\n".join(textwrap.wrap(words, 21, max_lines=2, placeholder=" ..."))
        self.draw.multiline_text((x, y + TILE + 3), label, "black", self.font, spacing=0)

    def band(self, number: int, query: int, near: dict[str, NDArray[np.int64]]) -> None:
        """Draw the band of one query; bands fill the columns from top to bottom."""
        column, line = divmod(number, self.depth)
        x, y = column * self.width + 10, self.TOP + line * (self.ways * self.ROW + self.GAP)
        self.draw.line((x, y - 10, x + self.width - 30, y - 10), "#bbbbbb")
        kind, colour = self.frame["articleType"][query], self.frame["baseColour"][query]
        middle = y + (self.ways - 1) * self.ROW // 2
        self.draw.text((x, middle - 20), f"{kind}, {colour}", "black", self.bold)
        self.tile(query, x, middle)
        for place, (way, found) in enumerate(near.items()):
            top = y + place * self.ROW
            self.draw.text((x + self.CELL, top + TILE // 2 - 8), way, "black", self.bold)
            for rank, other in enumerate(found[number][:NEAR]):
                edge = "#2a9d3a" if self.frame["articleType"][other] == kind else "#d03a3a"
                self.tile(int(other), x + (1 + rank) * self.CELL + self.SIDE, top, edge)


def contact_sheet(path: Path, frame: pd.DataFrame, queries: list[int], near: dict[str, NDArray[np.int64]]) -> None:
    sheet = Sheet(frame, len(queries), len(near))
    for number, query in enumerate(queries):
        sheet.band(number, query, near)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the cache and the contact sheet")
    parser.add_argument("--tiny", action="store_true", help="quick check: 300 products, no results written")
    args = parser.parse_args()
    facts = header()
    items, frame = read(args.data, args.tiny)
    parts: list[Embeddings] = []
    rows: list[dict[str, Any]] = []
    for encoder in (PretrainedImage(model=args.encoder), SentenceText()):
        encoded = encode_items(items, encoder, cache=args.out / "cache", chunk=512)
        print(encoded.report)
        parts.append(encoded.embeddings)
        fresh, seconds = encoded.report.encoded, encoded.report.seconds
        rows.append({"encoder": encoder.name, "encoded": fresh, "seconds": round(seconds, 1)})
    ways = {
        "picture": Fusion().fit(parts[:1]).transform(parts[:1]),
        "title": Fusion().fit(parts[1:]).transform(parts[1:]),
        "both": Fusion().fit(parts).transform(parts),
    }
    everyone = np.arange(len(items))
    near = {way: neighbours(e.vectors, everyone, 10) for way, e in ways.items()}
    codes = {label: pd.factorize(frame[label])[0] for label in LABELS}
    print(f"\nshare of the 10 nearest with the query's label, {len(items):,} products")
    print(f"{'by':10s}" + "".join(f"{label:>14s}" for label in LABELS))
    for way, found in near.items():
        shares = {label: round(agreement(found, codes[label]), 4) for label in LABELS}
        rows.append({"by": way, **shares})
        print(f"{way:10s}" + "".join(f"{share:14.4f}" for share in shares.values()))
    shares = {label: round(floor(codes[label]), 4) for label in LABELS}
    rows.append({"by": "random", **shares})
    print(f"{'random':10s}" + "".join(f"{share:14.4f}" for share in shares.values()))
    queries = pick_queries(frame)
    contact_sheet(args.out / "similar.png", frame, queries, {way: found[queries] for way, found in near.items()})
    print(f"sheet: {args.out / 'similar.png'}")
    if not args.tiny:
        write_results("fashion", facts, rows)


if __name__ == "__main__":
    main()
