"""Encoders: agreement with their libraries, the cache under kill and damage, missing content, fusion, specs."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, IdMap, Items
from recotransfer.encoders import (
    Fusion,
    HashingText,
    ImageGrid,
    PretrainedImage,
    SentenceText,
    TabularAttributes,
    default_encoders,
    encode_items,
    encoder_from_spec,
    encoder_spec,
    fuse,
)
from recotransfer.encoders.image import Unreadable, decode
from recotransfer.encoders.image_map import DenseImage
from recotransfer.encoders.precision import computes_in_bfloat16, multiplies_in_bfloat16
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.transfer import ImageNoise

SHARED = Path(os.environ.get("RECOTRANSFER_SHARED", Path(__file__).parents[3] / "shared"))
MOBILENET = SHARED / "data" / "encoders" / "mobilenet_v2_imagenet"
TITLES = [
    "Nordic espresso cup with a hand-thrown body, ivory",
    "Red quilt",
    "Tartan camping quilt in red ripstop nylon",
    "a",
    "Leather ankle boots for women, black, size 39, with a zip at the side and a warm lining of wool",
    "Кофейная чашка, 12 cl",
    "steel knife " * 150,
    *[f"{colour} {thing} no. {n}" for n in range(9) for colour in ("red", "dark blue") for thing in ("shirt", "lamp")],
]


def shop(titles, **more) -> Items:
    frame = pd.DataFrame({"title": titles, **more})
    kinds = {"title": "text", "image": "image", "brand": "category", "price": "number"}
    return Items(
        IdMap([f"i{n}" for n in range(len(frame))]), frame, {c: k for c, k in kinds.items() if c in frame.columns}
    )


class Counting(HashingText):
    """Counts what goes through."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen: list[str] = []

    def encode(self, values):
        self.seen += values
        return super().encode(values)


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def part(name, vectors, present=None) -> Embeddings:
    vectors = np.asarray(vectors, np.float32)
    present = np.ones(len(vectors), bool) if present is None else np.asarray(present)
    return Embeddings(
        IdMap(range(len(vectors))), vectors * present[:, None], name, present, ((name, vectors.shape[1]),)
    )


# Text


@pytest.fixture(scope="module")
def by_library():
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(SentenceText().folder), device="cpu")
    return network, network.encode(TITLES, show_progress_bar=False)


PRECISIONS = [
    "float32",
    pytest.param(
        "bfloat16",
        marks=pytest.mark.skipif(not multiplies_in_bfloat16(), reason="torch cannot multiply in bfloat16 here"),
    ),
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sentence_text_agrees_with_sentence_transformers(precision, by_library):
    encoder = SentenceText(precision=precision, batch_tokens=200)
    found = encoder.encode(TITLES)
    assert encoder._packed is not None
    assert found.shape == (len(TITLES), encoder.dim)
    assert cosine(found, by_library[1]).min() >= (0.99999 if precision == "float32" else 0.999)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_without_a_packed_form_go_through_the_library(precision, by_library):
    encoder = SentenceText(precision=precision)
    encoder._packed = None
    assert cosine(encoder.encode(TITLES), by_library[1]).min() >= 0.999


def test_bfloat16_is_chosen_by_multiplying_in_it_and_refused_where_that_fails(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is asked instead of the processor")

    def refuse(*_):
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    for question in (multiplies_in_bfloat16, computes_in_bfloat16):
        question.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
            assert SentenceText().resolved_precision == "float32"
            for encoder in (SentenceText(precision="bfloat16"), PretrainedImage(model="m", precision="bfloat16")):
                with pytest.raises(InputError, match="torch cannot multiply on this machine; use 'auto'"):
                    _ = encoder.resolved_precision
    finally:
        for question in (multiplies_in_bfloat16, computes_in_bfloat16):
            question.cache_clear()


def test_other_pooling_from_a_folder_is_honoured(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    base = tmp_path / "base"
    BertModel(config).save_pretrained(base)
    SentenceTransformer(str(SentenceText().folder)).tokenizer.save_pretrained(base)
    from sentence_transformers.base.modules import Transformer

    network = SentenceTransformer(modules=[Transformer(str(base)), Pooling(32, pooling_mode="cls")], device="cpu")
    network.save(str(tmp_path / "cls"))
    encoder = SentenceText(model=tmp_path / "cls", precision="float32", max_length=64)
    network.max_seq_length = 64
    assert encoder._packed is not None
    np.testing.assert_allclose(encoder.encode(TITLES), network.encode(TITLES, show_progress_bar=False), atol=1e-5)


def test_batches_do_not_change_results():
    wide, narrow = SentenceText(precision="float32"), SentenceText(precision="float32", batch_tokens=1)
    np.testing.assert_allclose(wide.encode(TITLES), narrow.encode(TITLES), atol=1e-5)


def test_text_columns_are_joined_and_blank_ones_left_out():
    titles = pd.Series(["cup", None, "  ", "half \ud83d pair"], dtype=object)
    items = shop(titles, text=["warm", "red", np.nan, None])
    encoder = HashingText(column=["title", "text"])
    assert encoder.values(items) == ["cup. warm", "red", None, "half ? pair"]
    with pytest.raises(InputError, match="no column 'titel'"):
        HashingText(column="titel").values(items)


def test_hashing_text_puts_like_titles_near():
    cup, mug, quilt = HashingText().encode(["blue espresso cup", "espresso cups, blue", "tartan camping quilt"])
    assert cup @ mug > 0.4 > 0.2 > cup @ quilt


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(InputError, match="is not a folder"):
        _ = SentenceText(model="/no/such/folder").name
    with pytest.raises(InputError, match="precision must be 'auto', 'float32' or 'bfloat16', got 'half'"):
        _ = SentenceText(precision="half").name
    with pytest.raises(InputError, match="chunk is 0"):
        encode_items(shop(["a"]), HashingText(), chunk=0)


# Cache


def test_only_what_changed_is_encoded_again(tmp_path):
    titles = [f"title {n}" for n in range(10)] + ["title 3", None]
    first = Counting()
    before = encode_items(shop(titles), first, cache=tmp_path, chunk=4)
    assert len(first.seen) == 10
    assert (before.report.encoded, before.report.repeated, before.report.empty) == (10, 1, 1)
    titles[5] = "another title"
    again = Counting()
    after = encode_items(shop(titles), again, cache=tmp_path, chunk=4)
    assert again.seen == ["another title"]
    assert (after.report.encoded, after.report.cached) == (1, 9)
    same = [n for n in range(12) if n != 5]
    np.testing.assert_array_equal(before.embeddings.vectors[same], after.embeddings.vectors[same])
    assert after.embeddings.has_content.tolist() == [True] * 11 + [False]
    assert "1 encoded, 9 from the cache" in str(after.report)


def test_another_encoder_does_not_read_this_cache(tmp_path):
    encode_items(shop(TITLES), HashingText(), cache=tmp_path)
    assert encode_items(shop(TITLES), HashingText(dim=64), cache=tmp_path).report.cached == 0


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_damaged_cache_files_are_dropped_and_encoded_again(tmp_path, harm):
    whole = encode_items(shop(TITLES), HashingText(), cache=tmp_path, chunk=8).embeddings
    victim = sorted(tmp_path.rglob("*.npy"))[1]
    content = bytearray(victim.read_bytes())
    content[-9] ^= 1
    victim.write_bytes({"truncate": content[:-40], "flip": content, "empty": b""}[harm])
    with pytest.warns(UserWarning, match="damaged"):
        again = encode_items(shop(TITLES), HashingText(), cache=tmp_path, chunk=8)
    assert 0 < again.report.encoded <= 8
    np.testing.assert_array_equal(whole.vectors, again.embeddings.vectors)


JOB = """
    import os, signal, sys
    import pandas as pd
    from recotransfer.data import IdMap, Items
    from recotransfer.encoders import HashingText, encode_items

    class Killed(HashingText):
        calls = 0

        def encode(self, values):
            self.calls += 1
            if self.calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(values)

    titles = [f"{'very ' * (n % 13)}red shirt number {n}" for n in range(200)]
    items = Items(IdMap(range(200)), pd.DataFrame({"title": titles}), {"title": "text"})
    done = encode_items(items, Killed(), cache=sys.argv[1], chunk=20, progress=False)
    if len(sys.argv) > 3:
        open(sys.argv[3], "wb").write(done.embeddings.vectors.tobytes())
        print(done.report.encoded)
"""


def test_a_killed_job_resumes_and_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))

    def run(cache, out):
        monkeypatch.setattr(sys, "argv", [str(word) for word in (script, tmp_path / cache, "0", tmp_path / out)])
        runpy.run_path(str(script))
        return int(capsys.readouterr().out)

    victim = subprocess.run([sys.executable, script, tmp_path / "killed", "4"], check=False)
    assert victim.returncode == -signal.SIGKILL
    assert run("killed", "resumed.bin") == 200 - 3 * 20
    assert run("calm", "calm.bin") == 200
    assert (tmp_path / "resumed.bin").read_bytes() == (tmp_path / "calm.bin").read_bytes()


def test_an_interrupted_network_resumes_with_the_same_bytes(tmp_path):
    class Failing(SentenceText):
        calls = 0

        def encode(self, values):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().encode(values)

    items = shop([f"{'very ' * (n % 13)}red shirt number {n}" for n in range(100)])
    with pytest.raises(KeyboardInterrupt):
        encode_items(items, Failing(), cache=tmp_path, chunk=20)
    resumed = encode_items(items, SentenceText(), cache=tmp_path, chunk=20)
    assert resumed.report.cached == 40
    calm = encode_items(items, SentenceText(), chunk=20)
    assert resumed.embeddings.vectors.tobytes() == calm.embeddings.vectors.tobytes()


def test_two_jobs_may_share_a_cache(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))
    outs = [tmp_path / "a.bin", tmp_path / "b.bin"]
    jobs = [subprocess.Popen([sys.executable, script, tmp_path / "cache", "0", out]) for out in outs]
    assert [job.wait() for job in jobs] == [0, 0]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    items = Items(IdMap(["x"]), pd.DataFrame({"title": ["red shirt number 0"]}), {"title": "text"})
    assert encode_items(items, HashingText(), cache=tmp_path / "cache").report.cached == 1


# Pictures


@pytest.fixture(scope="module")
def vision_folders(tmp_path_factory):
    """Tiny vision models with random weights, one per way of giving a pooled vector."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
        MobileNetV2Config,
        MobileNetV2Model,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTForImageClassification,
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sight = {**small, "image_size": 32, "patch_size": 8}
    text = {**small, "vocab_size": 99}
    models = {
        "vit": ViTForImageClassification(ViTConfig(**sight)),
        "dinov2": Dinov2Model(Dinov2Config(**sight)),
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=sight, projection_dim=12)),
        "clip_vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**sight, projection_dim=12)),
        "mobilenet_v2": MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=32)),
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    }
    root = tmp_path_factory.mktemp("vision")
    for name, model in models.items():
        model.save_pretrained(root / name)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / name)
    return root


def picture(seed=0, mode="RGB", size=(40, 30)):
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def as_bytes(image, kind="PNG", **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "dim"),
    [("vit", 16), ("dinov2", 16), ("clip", 12), ("clip_vision", 12), ("mobilenet_v2", 1280), ("resnet", 16)],
)
def test_every_kind_of_vision_model_gives_one_vector(vision_folders, name, dim):
    encoder = PretrainedImage(model=vision_folders / name, batch_size=2)
    found = encoder.encode([picture(n) for n in range(5)])
    assert found.shape == (5, dim) == (5, encoder.dim)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[3]], encoder.encode([picture(3)]), atol=1e-4)
    assert len({row.tobytes() for row in found}) == 5


def test_vit_without_a_trained_pooler_uses_the_class_token(vision_folders):
    import torch
    from transformers import ViTForImageClassification

    encoder = PretrainedImage(model=vision_folders / "vit")
    model = ViTForImageClassification.from_pretrained(vision_folders / "vit").eval()
    pixels = torch.from_numpy(encoder._network.features(picture())["pixel_values"])[None]
    with torch.inference_mode():
        wanted = model.vit(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(encoder.encode([picture()]), wanted, atol=1e-5)


def test_damaged_and_missing_pictures_are_reported_and_missing(vision_folders, tmp_path):
    good = as_bytes(picture())
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    images = [
        "good.png",
        "cut.png",
        "none.png",
        good,
        b"no picture",
        None,
        np.zeros((9, 9, 3)),
        picture(2),
        float("nan"),
    ]
    items = shop([None] * 9, image=pd.Series(images, dtype=object))
    encoder = PretrainedImage(model=vision_folders / "resnet", folder=tmp_path)
    done = encode_items(items, encoder, cache=tmp_path / "cache")
    assert done.embeddings.has_content.tolist() == [True, False, False, True, False, False, False, True, False]
    assert not done.embeddings.vectors[~done.embeddings.has_content].any()
    reasons = dict(done.report.unreadable)
    assert list(reasons) == ["i1", "i2", "i4", "i6"]
    assert "cannot be decoded" in reasons["i1"]
    assert "cannot be opened (No such file" in reasons["i2"]
    assert "float64" in reasons["i6"]
    assert (done.report.empty, done.report.repeated) == (2, 1)
    again = encode_items(items, encoder, cache=tmp_path / "cache")
    assert again.report.encoded == 0
    assert again.report.unreadable == done.report.unreadable
    np.testing.assert_array_equal(again.embeddings.vectors, done.embeddings.vectors)


@pytest.fixture
def enlarged(monkeypatch):
    """Pixels of each picture that Pillow scales, as they come."""
    from PIL import Image

    pixels, resize = [], Image.Image.resize

    def counted(image, size, *args, **settings):
        pixels.append(size[0] * size[1])
        return resize(image, size, *args, **settings)

    monkeypatch.setattr(Image.Image, "resize", counted)
    return pixels


def strip(width, height):
    from PIL import Image

    return as_bytes(Image.new("RGB", (width, height), (200, 30, 30)))


@pytest.mark.parametrize(("width", "height"), [(6000, 1), (1, 6000), (2000, 19)], ids=["wide", "tall", "near"])
def test_pictures_of_extreme_shape_are_reported_before_they_are_enlarged(vision_folders, width, height, enlarged):
    thin = strip(width, height)
    assert len(thin) < 1000
    for encoder in (PretrainedImage(model=vision_folders / "clip"), ImageGrid(model=vision_folders / "vit", size=32)):
        assert encoder.dim > 0
        enlarged.clear()
        assert np.isnan(encoder.encode([thin])).all()
        assert not enlarged
        assert "at most 100 times as long as the other" in encoder.explain_failure(thin)
    for read in (DenseImage(model=vision_folders / "vit").read, lambda p: ImageNoise()(p, np.random.default_rng(0))):
        with pytest.raises(InputError, match=f"{width} x {height} pixels; one edge may be at most 100 times"):
            read(thin)
    assert not enlarged


def test_the_longest_picture_that_is_read_is_enlarged_to_a_bounded_number_of_pixels(vision_folders, tmp_path, enlarged):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = shutil.copytree(vision_folders / "clip_vision", tmp_path / "clip")
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    encoder = PretrainedImage(model=folder)
    assert np.isfinite(encoder.encode([strip(2000, 20)])).all()
    assert max(enlarged) == 100 * 32**2
    assert np.isnan(encoder.encode([strip(6000, 1)])).all()
    assert max(enlarged) == 100 * 32**2


@pytest.mark.parametrize("setting", ["do_normalize", "do_rescale"])
def test_layers_read_place_by_place_see_pixels_as_the_processor_prepares_them(vision_folders, tmp_path, setting):
    folder = shutil.copytree(vision_folders / "vit", tmp_path / "vit")
    about = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**about, setting: False}))
    square = picture(size=(40, 40)).resize((32, 32))  # what the network takes: the processor has nothing to scale
    network = PretrainedImage(model=folder)._network
    whole = network.features(square)["pixel_values"]
    np.testing.assert_allclose(network.features(square, (32, 32))["pixel_values"], whole, atol=1e-6)
    np.testing.assert_allclose(ImageGrid(model=folder, size=32)._pixels(square), whole, atol=1e-6)
    seen = DenseImage(model=folder, sigmas=())._network._pixels(square, 1.0)[0].numpy()
    np.testing.assert_allclose(seen, whole, atol=1e-6)
    usual = PretrainedImage(model=vision_folders / "vit")._network.features(square, (32, 32))["pixel_values"]
    assert not np.allclose(whole, usual, atol=1e-3)


def test_pictures_are_found_by_item_id(vision_folders, tmp_path):
    (tmp_path / "i1.png").write_bytes(as_bytes(picture()))
    encoder = PretrainedImage(model=vision_folders / "resnet", folder=tmp_path)
    assert encode_items(shop(["a", "b"]), encoder).embeddings.has_content.tolist() == [False, True]


def test_pictures_of_every_mode_become_upright_rgb_over_white():
    from PIL import Image

    for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"):
        image = Image.fromarray(np.full((4, 6), 40000, np.uint16)) if mode == "I;16" else picture(mode=mode)
        assert decode(image).mode == "RGB"
    assert decode(Image.fromarray(np.full((4, 6), 40000, np.uint16))).getpixel((0, 0))[0] == pytest.approx(155, abs=1)
    clear = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    assert decode(as_bytes(clear)).getpixel((2, 2)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(as_bytes(picture(size=(40, 20)), "JPEG", exif=exif.tobytes())).size == (20, 40)
    assert decode(np.zeros((4, 5, 1), np.uint8)).size == (5, 4)
    assert min(decode(as_bytes(picture(size=(800, 600)), "JPEG"), 32).size) < 600


def test_huge_pictures_are_refused_before_they_fill_memory():
    from PIL import Image

    with pytest.raises(Unreadable, match="9000 x 9000 pixels"):
        decode(as_bytes(Image.new("1", (9000, 9000))))


@pytest.mark.skipif(not MOBILENET.exists(), reason="the shared MobileNetV2 folder is not on this machine")
def test_real_mobilenet_knows_a_picture_again_when_it_is_scaled():
    encoder = PretrainedImage(model=MOBILENET)
    seen, other = picture(1, size=(200, 200)), picture(2, size=(200, 200))
    rows = encoder.encode([seen, seen.resize((300, 300)), other])
    assert rows.shape == (3, 1280)
    near = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    assert near[0, 1] > 0.95 > near[0, 2]


# Attributes


def test_attributes_near_prices_and_shared_brands_are_near():
    items = shop(["x"] * 6, brand=["a", "a", "a", "b", None, None], price=[10, 10.4, 900, 10, 10, None])
    encoder = TabularAttributes(columns=["brand", "price"])
    done = encode_items(items, encoder)
    assert done.embeddings.has_content.tolist() == [True] * 5 + [False]
    rows = done.embeddings.vectors
    assert rows[0] @ rows[1] > rows[0] @ rows[2] > 0.3
    assert rows[0] @ rows[1] > rows[0] @ rows[3]
    np.testing.assert_allclose(np.linalg.norm(rows[:5], axis=1), 1, atol=0.25)
    assert encoder.values(shop(["x"], brand=[5.0], price=["n/a"])) == [{"brand": "5"}]


def test_neighbouring_years_differ_but_are_near():
    a, b, c = TabularAttributes().encode([{"year": 2020.0}, {"year": 2021.0}, {"year": 1950.0}])
    assert 0.999 > a @ b > a @ c


# Specs


def test_specs_build_the_same_encoders(vision_folders):
    items = shop(["a cup"], brand=["a"], price=[3.0], image=[picture()])
    given = [
        SentenceText(column=["title", "brand"], batch_tokens=100, max_length=32),
        HashingText(dim=64),
        TabularAttributes(columns=["brand", "price"], dim=32),
        PretrainedImage(model=vision_folders / "vit", batch_size=3),
    ]
    for encoder in given:
        twin = encoder_from_spec(encoder_spec(encoder))
        assert type(twin) is type(encoder)
        assert encoder_spec(twin) == encoder_spec(encoder)
        assert twin.name == encoder.name
        np.testing.assert_array_equal(
            encode_items(items, twin).embeddings.vectors, encode_items(items, encoder).embeddings.vectors
        )


def test_strange_specs_are_refused():
    with pytest.raises(InputError, match=r"no encoder is called 'os\.system'"):
        encoder_from_spec({"class": "os.system"})
    with pytest.raises(InputError, match="do not fit"):
        encoder_from_spec({"class": "HashingText", "colour": 1})


def test_default_encoders_follow_the_kinds(vision_folders):
    items = shop(["a"], brand=["a"], price=[3.0], image=[picture()])
    assert [e.modality for e in default_encoders(items)] == ["text", "attributes"]
    found = default_encoders(items, image_model=vision_folders / "vit")
    assert [e.modality for e in found] == ["text", "image", "attributes"]
    with pytest.raises(InputError, match="no encoder fits"):
        default_encoders(Items(IdMap([1]), pd.DataFrame({"x": [1]})))


# Fusion


def planted(n=600, missing=0.0, noise=0.3, seed=0):
    """Text and image of one hidden cause; some items lack their image."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 6))
    text = cause @ rng.normal(size=(6, 20)) + noise * rng.normal(size=(n, 20)) + 3
    image = cause @ rng.normal(size=(6, 30)) + noise * rng.normal(size=(n, 30)) - 1
    present = rng.random(n) >= missing
    return cause, part("text", text), part("image", image, present), image


def test_dot_product_of_fused_items_is_the_weighted_sum_of_cosines():
    _, text, image, _ = planted()
    fused = fuse([text, image], {"text": 3, "image": 1})
    unit = []
    for block in (text.vectors, image.vectors):
        centred = block - block.mean(0)
        unit.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    wanted = 0.75 * unit[0] @ unit[0].T + 0.25 * unit[1] @ unit[1].T
    np.testing.assert_allclose(fused.vectors @ fused.vectors.T, wanted, atol=1e-5)
    assert fused.blocks == (("text", 20), ("image", 30))


def test_one_block_is_centred_and_normalised():
    _, text, _, _ = planted()
    np.testing.assert_allclose(np.linalg.norm(fuse([text]).vectors, axis=1), 1, atol=1e-5)


def test_inferred_blocks_beat_zeros_and_are_shorter_where_less_is_known():
    _, text, image, truth = planted(missing=0.3)
    lost = ~image.has_content
    fused = Fusion(weights={"text": 0, "image": 1}).fit([text, image]).transform([text, image]).vectors[:, 20:]
    centred = truth - truth[~lost].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert cosine(fused[lost], unit[lost]).mean() > 0.9
    assert np.square(fused[lost] - unit[lost]).sum() < 0.3 * np.square(unit[lost]).sum()
    _, text, image, _ = planted(missing=0.3, noise=3.0)
    vague = Fusion(weights={"text": 0, "image": 1}).fit([text, image]).transform([text, image]).vectors[:, 20:]
    assert np.linalg.norm(vague[lost], axis=1).mean() < 0.9 < np.linalg.norm(fused[lost], axis=1).mean()


def test_predictors_of_thousands_of_columns_are_not_searched_for_the_best_penalty(monkeypatch):
    from recotransfer.encoders import fusion

    def searched(*_):
        raise AssertionError("the eigenvectors of thousands of columns take minutes")

    _, text, image, _ = planted(missing=0.3)
    monkeypatch.setattr(fusion, "_WIDEST", 4)
    monkeypatch.setattr(fusion.linalg, "eigh", searched)
    vectors = fuse([text, image]).vectors
    lost = ~image.has_content
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors[lost, 20:], axis=1).max() < np.linalg.norm(vectors[~lost, 20:], axis=1).min()


def test_an_item_without_a_picture_ranks_among_its_like():
    cause, text, image, _ = planted(missing=0.3)
    fused = fuse([text, image])
    lost = np.flatnonzero(~image.has_content)
    near = np.argsort(-(fused.vectors[lost] @ fused.vectors.T), axis=1)[:, 1:11]
    unit = cause / np.linalg.norm(cause, axis=1, keepdims=True)
    likeness = np.einsum("nd,nkd->nk", unit[lost], unit[near]).mean()
    assert likeness > 0.8


def test_items_with_nothing_at_all_are_not_present_and_new_items_map_alike():
    _, text, image, _ = planted()
    bare = part("text", text.vectors, np.arange(600) > 1), part("image", image.vectors, np.arange(600) > 0)
    fusion = Fusion().fit(bare)
    found = fusion.transform(bare)
    assert found.has_content.tolist()[:3] == [False, True, True]
    assert not found.vectors[0].any()
    rows = np.array([5, 9])
    few = [Embeddings(IdMap([5, 9]), p.vectors[rows], p.source, p.has_content[rows], p.blocks) for p in bare]
    np.testing.assert_allclose(fusion.transform(few).vectors, found.vectors[rows], atol=1e-6)


def test_three_blocks_with_every_pattern_of_gaps_stay_finite_and_at_most_unit_long():
    _, text, image, _ = planted()
    rng = np.random.default_rng(1)
    masks = rng.random((3, 600)) < 0.6
    extra = part("attributes", text.vectors[:, :8] + rng.normal(size=(600, 8)), masks[2])
    parts = [part("text", text.vectors, masks[0]), part("image", image.vectors, masks[1]), extra]
    fused = fuse(parts)
    assert np.linalg.norm(fused.vectors, axis=1).max() < 1.0001
    np.testing.assert_array_equal(fused.has_content, masks.any(0))


def test_fusion_is_saved_and_loaded(tmp_path):
    _, text, image, _ = planted(missing=0.3)
    fusion = Fusion(weights={"text": 2, "image": 1}).fit([text, image])
    write_artifact(tmp_path / "saved", "Fusion", fusion.save)
    twin = Fusion.load(open_artifact(tmp_path / "saved"))
    np.testing.assert_array_equal(twin.transform([text, image]).vectors, fusion.transform([text, image]).vectors)


def test_fusion_says_what_does_not_fit():
    _, text, image, _ = planted()
    with pytest.raises(NotFittedError):
        Fusion().transform([text])
    with pytest.raises(InputError, match="unknown blocks \\['sound'\\]"):
        fuse([text, image], {"sound": 1})
    with pytest.raises(InputError, match="at least 0"):
        fuse([text, image], {"text": -1, "image": 2})
    with pytest.raises(InputError, match="fitted on blocks"):
        Fusion().fit([text, image]).transform([image, text])
