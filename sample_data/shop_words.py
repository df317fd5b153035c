"""The words of the sample shop: product families, brands, styles, colours and patterns. Data only, no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One category of the shop.

    Attributes:
        name, count: the category and how many products it has.
        group: "home", "wear" or "outdoor".
        price: a middling price.
        nouns: what a product is called, each with the shape that is drawn for it.
        materials: all of a kind that can be dyed or glazed.
        surface: the part that carries colour and pattern.
        details, uses: noun phrases for titles and descriptions.
        leads_to: the category that shoppers look at next once they like something here.
        plural: True where the noun is a pair.
    """

    name: str
    count: int
    group: str
    price: float
    nouns: tuple[tuple[str, str], ...]
    materials: tuple[str, ...]
    surface: str
    details: tuple[str, ...]
    uses: tuple[str, ...]
    leads_to: str | None = None
    plural: bool = False


@dataclass(frozen=True)
class Brand:
    """A maker: what it makes, in which styles, and its price level (1 is middling)."""

    name: str
    groups: tuple[str, ...]
    styles: tuple[str, ...]
    level: float


@dataclass(frozen=True)
class Style:
    """A look: words for titles, lines for descriptions, and the colours, patterns and groups it favours."""

    name: str
    words: tuple[str, ...]
    lines: tuple[str, ...]
    colours: tuple[str, ...]
    patterns: dict[str, float]
    groups: dict[str, float]


FAMILIES: tuple[Family, ...] = (
    Family(
        "Mugs", 48, "home", 14,
        (("mug", "mug"), ("tall mug", "tall_mug"), ("espresso cup", "cup"), ("coffee mug", "mug")),
        ("stoneware", "porcelain", "enamel", "earthenware", "bone china"), "glaze",
        ("a wide handle", "a thumb rest", "an unglazed foot", "a rolled rim", "a hand-thrown body", "a heavy base"),
        ("slow mornings", "strong coffee", "a desk by the window", "hot chocolate", "tea for one"), "Plates",
    ),
    Family(
        "Plates", 36, "home", 18,
        (("dinner plate", "plate"), ("side plate", "small_plate"), ("serving platter", "platter")),
        ("stoneware", "porcelain", "enamel", "earthenware"), "glaze",
        ("a raised rim", "a gently curved edge", "a matt underside", "a hand-finished lip", "a wide well"),
        ("long lunches", "everyday suppers", "a generous Sunday roast", "cake and biscuits", "outdoor meals"),
    ),
    Family(
        "Vases", 36, "home", 32,
        (("vase", "vase"), ("bud vase", "bud_vase"), ("bottle vase", "bud_vase"), ("tall vase", "vase")),
        ("ceramic", "stoneware", "earthenware", "terracotta clay", "porcelain"), "glaze",
        ("a narrow neck", "a flared lip", "a weighted foot", "softly ribbed sides", "a rounded belly"),
        ("a single stem", "dried grasses", "tulips from the market", "a hallway table", "garden cuttings"), "Candles",
    ),
    Family(
        "Lamps", 44, "home", 65,
        (("table lamp", "table_lamp"), ("floor lamp", "floor_lamp"), ("pendant lamp", "pendant"),
         ("bedside lamp", "table_lamp")),
        ("linen", "pleated cotton", "enamelled steel", "paper", "velvet"), "shade",
        ("a dimmer switch", "a slim brass stem", "a braided cord", "a turned oak base", "a tilting head"),
        ("reading in bed", "a dark corner", "cosy evenings", "the kitchen table", "a quiet study"), "Cushions",
    ),
    Family(
        "Cushions", 48, "home", 26,
        (("cushion", "cushion"), ("bolster cushion", "bolster"), ("round cushion", "round_cushion"),
         ("floor cushion", "cushion")),
        ("linen", "cotton velvet", "boiled wool", "cotton canvas", "corduroy"), "cover",
        ("a hidden zip", "piped edges", "a feather filling", "a button centre", "a washable cover"),
        ("a tired sofa", "the reading chair", "a window seat", "floor picnics", "an afternoon nap"),
    ),
    Family(
        "Rugs", 32, "home", 120,
        (("rug", "rug"), ("round rug", "round_rug"), ("hallway runner", "runner")),
        ("wool", "jute blend", "recycled cotton", "flatwoven wool", "tufted wool"), "pile",
        ("a knotted fringe", "a non-slip backing", "bound edges", "hand-finished corners", "a soft deep pile"),
        ("bare floorboards", "cold bedroom floors", "busy hallways", "the space under a table", "a play corner"),
        "Cushions",
    ),
    Family(
        "Candles", 28, "home", 20,
        (("scented candle", "jar_candle"), ("pillar candle", "pillar"), ("jar candle", "jar_candle")),
        ("soy wax", "beeswax", "rapeseed wax", "coconut wax"), "wax",
        ("a cotton wick", "a scent of cedar and smoke", "a scent of fig leaf", "a slow clean burn",
         "a scent of lavender", "a scent of sea salt"),
        ("a long bath", "the dinner table", "winter evenings", "a bedside shelf", "a thank-you present"),
    ),
    Family(
        "Shirts", 52, "wear", 38,
        (("T-shirt", "t_shirt"), ("shirt", "shirt"), ("long-sleeved shirt", "shirt"), ("tee", "t_shirt")),
        ("organic cotton", "washed linen", "brushed flannel", "merino wool", "Oxford cotton"), "fabric",
        ("a chest pocket", "a relaxed neckline", "flat seams", "a boxy fit", "turned-back cuffs"),
        ("weekends", "warm offices", "layering", "travelling light", "garden parties"), "Jackets",
    ),
    Family(
        "Dresses", 44, "wear", 62,
        (("summer dress", "dress"), ("maxi dress", "maxi_dress"), ("pinafore dress", "dress"),
         ("wrap dress", "maxi_dress")),
        ("cotton poplin", "washed linen", "viscose crepe", "needlecord", "jersey"), "fabric",
        ("side pockets", "a tie waist", "a square neckline", "fluttering sleeves", "a tiered skirt"),
        ("summer weddings", "long lunches", "the school run", "holidays by the sea", "the first warm day"), "Hats",
    ),
    Family(
        "Trainers", 44, "wear", 78,
        (("trainers", "trainers"), ("high-top trainers", "high_tops"), ("running shoes", "trainers"),
         ("trail shoes", "trainers")),
        ("canvas", "suede", "leather", "recycled mesh", "knitted mesh"), "upper",
        ("a gum sole", "a cushioned insole", "a padded heel", "reflective laces", "deep grippy lugs"),
        ("city miles", "muddy paths", "a morning run", "all-day walking", "rainy pavements"), None, True,
    ),
    Family(
        "Hats", 36, "wear", 24,
        (("beanie", "beanie"), ("sun hat", "sun_hat"), ("cap", "cap"), ("bobble hat", "beanie")),
        ("lambswool", "cotton twill", "corduroy", "boiled wool", "waxed cotton"), "crown",
        ("a folded brim", "a soft lining", "a ribbon band", "an adjustable strap", "a snug fit"),
        ("frosty walks", "the beach", "windy days", "gardening", "bad hair mornings"),
    ),
    Family(
        "Jackets", 36, "wear", 110,
        (("jacket", "jacket"), ("hooded jacket", "raincoat"), ("zip jacket", "jacket"), ("parka", "raincoat")),
        ("waxed cotton", "recycled fleece", "quilted nylon", "wool blend", "coated canvas"), "shell",
        ("a two-way zip", "taped seams", "deep hand pockets", "a stand-up collar", "a fleece lining"),
        ("the walk to work", "stormy weekends", "chilly evenings", "dog walks", "boat trips"),
    ),
    Family(
        "Backpacks", 40, "outdoor", 70,
        (("backpack", "backpack"), ("rucksack", "rucksack"), ("daypack", "backpack"), ("hiking pack", "rucksack")),
        ("cotton canvas", "ripstop nylon", "recycled polyester", "waxed cotton"), "shell",
        ("a padded laptop sleeve", "a roll top", "a chest strap", "leather pulls", "side pockets for bottles"),
        ("day hikes", "the daily commute", "a weekend away", "school books", "hut-to-hut walking"), "Water bottles",
    ),
    Family(
        "Tents", 28, "outdoor", 210,
        (("dome tent", "dome_tent"), ("ridge tent", "ridge_tent"), ("two-person tent", "dome_tent"),
         ("family tent", "ridge_tent")),
        ("ripstop nylon", "recycled polyester", "cotton canvas", "silicone-coated nylon"), "flysheet",
        ("a roomy porch", "colour-coded poles", "a sewn-in groundsheet", "two doors", "storm guy lines"),
        ("festival weekends", "mountain nights", "family campsites", "wild camping", "garden sleepovers"),
        "Sleeping bags",
    ),
    Family(
        "Sleeping bags", 24, "outdoor", 95,
        (("sleeping bag", "mummy_bag"), ("mummy sleeping bag", "mummy_bag"), ("camping quilt", "quilt")),
        ("ripstop nylon", "recycled polyester", "brushed cotton", "down-filled nylon"), "shell",
        ("a two-way zip", "a drawcord hood", "a stuff sack", "a warm foot box", "an inside pocket"),
        ("cool spring nights", "three-season camping", "the back of the van", "winter huts", "summer festivals"),
    ),
    Family(
        "Water bottles", 24, "outdoor", 22,
        (("water bottle", "bottle"), ("insulated bottle", "bottle"), ("vacuum flask", "flask")),
        ("powder-coated steel", "brushed steel", "recycled aluminium", "enamelled steel"), "finish",
        ("a leakproof lid", "a carry loop", "a cup lid", "a wide mouth for ice", "double walls"),
        ("long hikes", "the gym bag", "hot soup at the summit", "a desk all day", "bike rides"),
    ),
)  # fmt: skip

BRANDS: tuple[Brand, ...] = (
    Brand("Fjordhus", ("home",), ("Nordic", "modern"), 1.35),
    Brand("Bramble & Bee", ("home", "wear"), ("floral", "vintage"), 0.9),
    Brand("Cragfell", ("outdoor", "wear"), ("rugged",), 1.3),
    Brand("Saltbarrow", ("home", "wear"), ("coastal",), 1.0),
    Brand("Old Mill Road", ("home",), ("vintage", "floral"), 1.1),
    Brand("Plainfold", ("home", "wear"), ("modern", "Nordic"), 0.8),
    Brand("Tarnway", ("outdoor",), ("rugged", "modern"), 0.85),
    Brand("Loomlight", ("home",), ("Nordic", "coastal"), 1.15),
    Brand("Marigold Lane", ("wear", "home"), ("floral",), 1.2),
    Brand("Northbeck", ("wear", "outdoor"), ("rugged", "Nordic"), 1.05),
    Brand("Tidewright", ("wear", "outdoor"), ("coastal", "vintage"), 0.9),
    Brand("Odd Button", ("wear",), ("vintage", "floral"), 0.75),
    Brand("Studio Kerf", ("home", "outdoor"), ("modern",), 1.6),
    Brand("Everyday Shed", ("home", "wear", "outdoor"), ("modern", "rugged", "coastal"), 0.6),
)

STYLES: tuple[Style, ...] = (
    Style(
        "Nordic", ("Nordic", "Scandinavian", "pared-back Nordic"),
        (
            "Inspired by quiet Scandinavian cabins and long winter light.",
            "Simple Nordic lines, nothing wasted.",
            "Calm and warm, the way a northern home should feel.",
            "Designed with the clean restraint of Nordic craft.",
            "A touch of hygge for the colder months.",
        ),
        ("sage", "cream", "sky", "charcoal", "sand"),
        {"plain": 5, "stripes": 3, "dots": 2, "checks": 1}, {"home": 4, "wear": 2, "outdoor": 1},
    ),
    Style(
        "floral", ("floral", "botanical", "cottage-garden", "flower-strewn"),
        (
            "The pattern was drawn from a cottage garden in June.",
            "Blossom and leaf, painted with a light hand.",
            "Romantic without being fussy.",
            "As fresh as a bunch of sweet peas.",
            "A botanical print that brings the meadow indoors.",
        ),
        ("pink", "plum", "cream", "red", "sage"),
        {"flowers": 8, "dots": 2, "plain": 0.3}, {"home": 3, "wear": 4, "outdoor": 0.4},
    ),
    Style(
        "rugged", ("rugged", "hard-wearing", "all-weather", "expedition"),
        (
            "Built to be dropped, rained on and taken out again.",
            "Tough enough for the hills and better with every scratch.",
            "Tested on wet fells by people who do not turn back.",
            "Made for rough ground and bad forecasts.",
            "Reinforced where it matters, for years of hard outdoor use.",
        ),
        ("forest", "rust", "charcoal", "mustard", "navy"),
        {"plain": 6, "checks": 3, "stripes": 1}, {"home": 0.7, "wear": 3, "outdoor": 8},
    ),
    Style(
        "vintage", ("vintage", "retro", "heritage", "seventies-style"),
        (
            "Based on an old favourite found at a flea market.",
            "A nod to the seventies, in all the right ways.",
            "Old-fashioned charm with none of the dust.",
            "Looks as though it has been in the family for years.",
            "Revived from a pattern in our grandmother's kitchen drawer.",
        ),
        ("mustard", "rust", "teal", "plum", "red"),
        {"checks": 4, "dots": 3, "stripes": 3, "plain": 2}, {"home": 3, "wear": 3, "outdoor": 1},
    ),
    Style(
        "modern", ("modern", "minimal", "clean-lined", "contemporary"),
        (
            "Sharp, quiet and entirely contemporary.",
            "Reduced to what is needed, then made well.",
            "A modern shape that leaves room to breathe.",
            "Minimal by design, sturdy by nature.",
            "An architect's idea of everyday comfort.",
        ),
        ("charcoal", "cream", "black", "teal", "sand"),
        {"plain": 8, "stripes": 2, "dots": 1}, {"home": 3, "wear": 2.5, "outdoor": 2.5},
    ),
    Style(
        "coastal", ("coastal", "seaside", "nautical", "harbour"),
        (
            "Brings home the colours of a harbour on a bright day.",
            "Breezy and salt-washed, like the last week of August.",
            "Sand between the toes, wherever you are.",
            "Nautical in the best sense, no anchors required.",
            "As easy-going as a house by the sea.",
        ),
        ("navy", "sky", "teal", "sand", "cream"),
        {"stripes": 8, "plain": 3, "dots": 1}, {"home": 2.5, "wear": 3, "outdoor": 1.5},
    ),
)  # fmt: skip

COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "sage": ((150, 172, 142), ("sage", "sage green", "soft green")),
    "cream": ((238, 226, 200), ("cream", "ivory", "off-white")),
    "sky": ((136, 186, 220), ("sky blue", "pale blue", "light blue")),
    "charcoal": ((78, 82, 90), ("charcoal", "dark grey", "slate grey")),
    "sand": ((206, 180, 140), ("sand", "beige", "oatmeal")),
    "pink": ((232, 158, 170), ("blush pink", "pink", "rose pink")),
    "plum": ((126, 68, 112), ("plum", "aubergine", "deep purple")),
    "red": ((196, 52, 50), ("red", "cherry red", "scarlet")),
    "forest": ((52, 98, 68), ("forest green", "dark green", "pine green")),
    "rust": ((190, 96, 54), ("rust", "burnt orange", "terracotta")),
    "mustard": ((222, 174, 60), ("mustard", "mustard yellow", "ochre")),
    "navy": ((40, 60, 108), ("navy", "navy blue", "midnight blue")),
    "teal": ((42, 132, 136), ("teal", "petrol blue", "sea green")),
    "black": ((42, 40, 44), ("black", "jet black", "ink black")),
}

# Adjectives and phrases of each pattern; {colour} and {surface} are filled in. "speckled" is kept for glazes.
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "stripes": ("striped", "stripy", "banded"),
    "dots": ("spotted", "dotted", "polka-dot"),
    "checks": ("checked", "gingham", "tartan"),
    "flowers": ("flower-print", "flowered", "meadow-print"),
}
PATTERN_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("{colour} {surface}", "plain {colour} {surface}", "solid {colour} {surface}"),
    "stripes": ("{colour} stripes", "striped {colour} {surface}", "fine {colour} stripes"),
    "dots": ("{colour} spots", "dotted {colour} {surface}", "little {colour} dots"),
    "checks": ("{colour} checks", "checked {colour} {surface}", "an all-over {colour} check"),
    "flowers": ("{colour} flowers", "an all-over {colour} flower print", "scattered {colour} blossoms"),
}
SPECKLED = "speckled {colour} {surface}"
