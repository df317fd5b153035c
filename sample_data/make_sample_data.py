"""Makes the sample shop: items.csv, events.csv and images/, the same bytes for the same seed.

Run `python sample_data/make_sample_data.py`. Everything is invented; README.md beside this file says how to read it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from shop_catalogue import Product, make_products
from shop_events import Event, make_events
from shop_pictures import picture
from shop_words import COLOURS

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "category", "price", "in_stock", "image", "added")
EVENT_COLUMNS = ("user_id", "item_id", "event", "timestamp", "query")


def image_name(product: Product) -> str:
    return f"images/{product.item_id}.png" if product.has_image else ""


def item_row(product: Product) -> tuple[str, ...]:
    return (
        product.item_id,
        product.title,
        product.description,
        product.brand.name,
        product.family.name,
        f"{product.price:.2f}" if product.has_price else "",
        "true" if product.in_stock else "false",
        image_name(product),
        product.added.isoformat(),
    )


def event_row(event: Event) -> tuple[str, ...]:
    return event.user_id, event.item_id, event.event, event.at.strftime("%Y-%m-%dT%H:%M:%SZ"), event.query


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_pictures(folder: Path, products: list[Product]) -> None:
    """One PNG per product that has an image; pictures of an earlier run are removed."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for old in (folder / "images").glob("P*.png"):
        old.unlink()
    for product in products:
        if product.has_image:
            colour = COLOURS[product.colour][0]
            drawn = picture(product.shape, colour, product.pattern, product.flip)
            drawn.save(folder / image_name(product), optimize=True)


def make(folder: Path, seed: int) -> None:
    """The whole sample in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    products = make_products(seed)
    events = make_events(products, seed)
    write_csv(folder / "items.csv", ITEM_COLUMNS, map(item_row, products))
    write_csv(folder / "events.csv", EVENT_COLUMNS, map(event_row, events))
    write_pictures(folder, products)
    print(f"{len(products)} products and {len(events)} events in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    make(args.out, args.seed)


if __name__ == "__main__":
    main()
