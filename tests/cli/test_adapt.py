"""`recotransfer adapt` and `label` from end to end on small tables."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from recotransfer.adapters.medical import NOTICE
from recotransfer.cli import adapt as adapt_module
from recotransfer.cli import main as cli
from recotransfer.encoders import HashingText


def run(*words, folder):
    """The command run in this process, where the libraries it needs are loaded already."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["recotransfer", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table of patients as CSV, whose illness shows in two of its columns."""
    folder = tmp_path_factory.mktemp("adapt")
    rng = np.random.default_rng(0)
    ill = rng.random(200) < 0.4
    frame = pd.DataFrame(
        {
            "patient": np.arange(200) // 2,
            "age": rng.normal(60, 9, 200).round(),
            "pressure": (rng.normal(120, 8, 200) + 30 * ill).round(1),
            "pain": np.where(rng.random(200) < 0.2, rng.choice(["1.0", "2.0"], 200), np.where(ill, "2.0", "1.0")),
            "diagnosis": np.where(ill, "ill", "well"),
        }
    )
    frame.loc[5, "pressure"] = None
    frame.to_csv(folder / "patients.csv", index=False)
    frame.drop(columns="diagnosis").to_csv(folder / "new.csv", index=False)
    letters = ["".join(rng.choice(list("ACGT"), 30)) for _ in range(120)]
    marked = np.arange(120) % 2 == 0
    sequences = [s[:10] + "TATAAT" + s[16:] if m else s for s, m in zip(letters, marked, strict=True)]
    dna = pd.DataFrame({"seq": sequences, "label": marked.astype(int), "family": np.arange(120) // 2})
    dna.to_csv(folder / "dna.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def model(place):
    words = ["adapt", "medical", "patients.csv", "--of", "table", "--label", "diagnosis", "--positive", "ill"]
    done = run(*words, "--group", "patient", "--out", "model", "--report", "report.json", folder=place)
    assert done.returncode == 0, done.stderr
    return done


def test_figures_come_as_csv_and_json_and_the_model_labels_new_rows(model, place):
    lines = model.stdout.splitlines()
    figures = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert float(figures["AUC"]) > 0.9
    assert float(figures["AUC low"]) <= float(figures["AUC"]) <= float(figures["AUC high"])
    told = json.loads((place / "report.json").read_text())
    assert told["saved"] == "frozen encoder"
    assert told["notice"] == NOTICE
    assert NOTICE in model.stderr
    assert told["variants"][0]["AUC"] == pytest.approx(float(figures["AUC"]), abs=1e-4)
    done = run("label", "model", "new.csv", "--out", "labels.csv", "--k", "2", folder=place)
    assert done.returncode == 0, done.stderr
    assert NOTICE in done.stderr
    found = pd.read_csv(place / "labels.csv")
    assert found["row"].nunique() == 200
    np.testing.assert_allclose(found.groupby("row")["score"].sum(), 1, atol=1e-5)
    truth = pd.read_csv(place / "patients.csv")["diagnosis"].to_numpy()
    assert (found[found["rank"] == 1]["label"].to_numpy() == truth).mean() > 0.9


def test_parquet_goes_out_too(model, place):
    assert run("label", "model", "new.csv", "--out", "labels.parquet", folder=place).returncode == 0
    assert pd.read_parquet(place / "labels.parquet").columns.tolist() == ["row", "label", "rank", "score"]


def test_tables_of_a_database_are_labelled(model, place):
    import sqlite3

    with sqlite3.connect(place / "clinic.db") as base:
        pd.read_csv(place / "new.csv").to_sql("visits", base, index=False)
    done = run("label", "model", f"sqlite:///{place}/clinic.db#visits", "--out", "visits.csv", folder=place)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(place / "visits.csv")) == 200


def test_sequences_of_any_column_are_learned_and_labelled(place):
    words = ["dna.csv", "--of", "dna", "--positive", "1", "--column", "seq", "--group", "family", "--out", "dna-model"]
    done = run("adapt", "medical", *words, folder=place)
    assert done.returncode == 0, done.stderr
    figures = dict(zip(*[line.split(",") for line in done.stdout.splitlines()[:2]], strict=True))
    assert float(figures["AUC"]) > 0.9
    done = run("label", "dna-model", "dna.csv", "--out", "dna-labels.csv", folder=place)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(place / "dna-labels.csv")["label"]
    assert (found == pd.read_csv(place / "dna.csv")["label"]).mean() > 0.9


@pytest.fixture(scope="module")
def albums(tmp_path_factory):
    """A random vision model, and two folders whose pictures have the same names and the colours swapped."""
    import torch
    from PIL import Image
    from transformers import ResNetConfig, ResNetModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("albums")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder / "network")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "network")
    draw = np.random.default_rng(0)
    for album, hues in {"old": ("red", "blue"), "new": ("blue", "red")}.items():
        (folder / album).mkdir()
        for at in range(40):
            pixels = draw.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, ("red", "green", "blue").index(hues[at % 2])] += 150
            Image.fromarray(pixels).save(folder / album / f"{at}.png")
        table = pd.DataFrame({"file": [f"{at}.png" for at in range(40)], "label": np.resize(hues, 40)})
        table.to_csv(folder / album / "photos.csv", index=False)
    return folder


def test_new_pictures_are_read_from_the_folder_of_their_own_table(albums):
    words = ["old/photos.csv", "--of", "image", "--positive", "red", "--column", "file", "--encoder", "network"]
    done = run("adapt", "medical", *words, "--out", "model", folder=albums)
    assert done.returncode == 0, done.stderr
    done = run("label", "model", "new/photos.csv", "--out", "labels.csv", folder=albums)
    assert done.returncode == 0, done.stderr
    assert "40 rows, 0 without readable content" in done.stderr
    assert NOTICE in done.stderr
    truth = pd.read_csv(albums / "new" / "photos.csv")
    assert pd.read_csv(albums / "labels.csv")["label"].tolist() == truth["label"].tolist()
    pd.DataFrame({"picture": truth["file"]}).to_csv(albums / "new" / "other.csv", index=False)
    done = run("label", "model", "new/other.csv", "--out", "labels.csv", folder=albums)
    assert done.returncode == 2
    assert "no column 'file' of pictures" in done.stderr
    assert NOTICE in run("inspect", "model", folder=albums).stderr


def test_only_relative_paths_are_taken_from_the_folder_of_the_table(tmp_path):
    cells = ["a.png", str(tmp_path / "b.png"), None, float("nan"), b"bytes", {"bytes": None, "path": "c.png"}]
    found = [adapt_module._relative_to(tmp_path, cell) for cell in cells]
    assert found[:3] == [str(tmp_path / "a.png"), str(tmp_path / "b.png"), None]
    assert np.isnan(found[3])
    assert found[4:] == [b"bytes", {"bytes": None, "path": str(tmp_path / "c.png")}]


@pytest.mark.parametrize(
    "words",
    [
        ["vision", "photos.csv", "--encoder", "network", "--column", "file"],
        ["nlp", "photos.csv", "--column", "title"],
        ["medical", "photos.csv", "--of", "image", "--encoder", "network", "--column", "file", "--positive", "a"],
        ["medical", "photos.csv", "--of", "dna", "--column", "title", "--positive", "a"],
        ["medical", "photos.csv", "--of", "table", "--positive", "a"],
    ],
)
def test_a_group_is_one_unit_of_every_interval(tmp_path, monkeypatch, words):
    seen = []
    monkeypatch.setattr(adapt_module, "_learn", lambda problem, *_, **__: seen.append(problem))
    who, label = np.repeat([f"who {n}" for n in range(10)], 3), np.resize(list("aab"), 30)
    table = pd.DataFrame({"file": "x.png", "title": "ACGT", "size": 1.0, "label": label, "who": who})
    table.to_csv(tmp_path / "photos.csv", index=False)
    words = [str(tmp_path / word) if word.endswith(".csv") else word for word in words]
    done = CliRunner().invoke(cli.cli, ["adapt", *words, "--group", "who", "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(seen[0].groups, np.repeat(np.arange(10), 3))


class Reader(HashingText):
    """A stand-in for a pretrained encoder: it knows what the numbers in a text mean, and nothing of its words."""

    name = "Reader/1"

    def encode(self, values):
        out = np.random.default_rng(0).normal(size=(len(values), 8)).astype(np.float32)
        for row, text in zip(out, values, strict=True):
            numbers = [int(word) for word in text.split() if word.isdigit()]
            row[0] = sum(4.0 if number % 2 else -4.0 for number in numbers)
        return out


def written_texts(folder, numbered, worded):
    """400 texts of one of two labels, which shows in a number, in a word, or in neither."""
    draw = np.random.default_rng(0)
    rows = []
    for at in range(400):
        label = at % 2
        filler = " ".join(draw.choice(["the", "film", "was", "seen", "by", "us", "all", "here"], 5))
        number = 2 * (1000 + at) + (label if numbered(at) else int(draw.integers(2)))
        word = (["dull", "fine"] if worded(at) else ["old", "old"])[label]
        part = "test" if at % 5 == 0 else "valid" if at % 5 == 1 else "train"
        rows.append((f"{filler} {word} {number}", ["bad", "good"][label], part))
    pd.DataFrame(rows, columns=["text", "label", "part"]).to_csv(folder / "texts.csv", index=False)


@pytest.mark.parametrize(
    ("numbered", "worded", "best"),
    [
        (lambda at: False, lambda at: True, {"words only"}),
        (lambda at: True, lambda at: False, {"frozen encoder"}),
        (lambda at: at % 4 < 2, lambda at: at % 4 >= 2, {"words and frozen encoder"}),
    ],
    ids=["the words know", "the encoder knows", "each knows half"],
)
def test_texts_are_compared_by_words_encoder_and_both(tmp_path, monkeypatch, numbered, worded, best):
    from recotransfer import encoders

    monkeypatch.setattr(encoders, "SentenceText", lambda model=None, column="text": Reader(column=column, dim=8))
    written_texts(tmp_path, numbered, worded)
    done = run("adapt", "nlp", "texts.csv", "--part", "part", "--out", "model", "--report", "r.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout.rpartition("model")[0]), index_col="variant")
    assert table.index.tolist() == ["frozen encoder", "words only", "words and frozen encoder"]
    told = json.loads((tmp_path / "r.json").read_text())
    singles = table["accuracy"][["frozen encoder", "words only"]]
    if best == {"words and frozen encoder"}:
        assert table["accuracy"]["words and frozen encoder"] > singles.max() + 0.1
        assert told["saved"] == "words and frozen encoder"
    else:
        assert singles[next(iter(best))] > 0.95
        assert singles[next(iter({"frozen encoder", "words only"} - best))] < 0.7
        assert table["accuracy"]["words and frozen encoder"] > 0.95
        assert told["saved"] != next(iter({"frozen encoder", "words only"} - best))
    assert table["valid accuracy"][told["saved"]] == table["valid accuracy"].max()
    assert not list(tmp_path.glob("*.tuning"))
    done = run("label", "model", "texts.csv", "--out", "labels.csv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "labels.csv")["label"]
    assert (found == pd.read_csv(tmp_path / "texts.csv")["label"]).mean() > 0.9


def test_texts_without_a_validation_part_keep_the_encoder(tmp_path, monkeypatch):
    from recotransfer import encoders

    monkeypatch.setattr(encoders, "SentenceText", lambda model=None, column="text": Reader(column=column, dim=8))
    written_texts(tmp_path, lambda at: True, lambda at: False)
    frame = pd.read_csv(tmp_path / "texts.csv")
    frame["part"] = frame["part"].replace("valid", "train")
    frame.to_csv(tmp_path / "texts.csv", index=False)
    done = run("adapt", "nlp", "texts.csv", "--part", "part", "--out", "model", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saved the frozen encoder, there is no validation part to choose by" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["adapt", "nlp", "patients.csv", "--out", "x"], "no column 'text'"),
        (["adapt", "nlp", "nowhere.csv", "--out", "x"], "nowhere.csv does not exist"),
        (["adapt", "medical", "patients.csv", "--of", "table", "--label", "diagnosis", "--positive", "dead",
          "--out", "x"], "no row has the label 'dead'"),
        (["adapt", "medical", "patients.csv", "--of", "table", "--label", "diagnosis", "--positive", "ill",
          "--group", "family", "--out", "x"], "no such column"),
        (["adapt", "medical", "patients.csv", "--of", "table", "--label", "diagnosis", "--positive", "ill",
          "--tune", "--out", "x"], "leave it out"),
        (["adapt", "medical", "patients.csv", "--of", "image", "--label", "diagnosis", "--positive", "ill",
          "--column", "pain", "--out", "x"], "give --encoder"),
        (["adapt", "vision", "empty", "--encoder", "m", "--out", "x"], "give each label a folder"),
        (["label", "model", "dna.csv", "--out", "x.csv"], "no column"),
        (["label", "model", "new.csv", "--out", "x.txt"], "x.txt must end in .csv or .parquet"),
        (["label", "model", "empty", "--out", "x.csv"], "does not read a single column of pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(model, place, words, says):
    (place / "empty").mkdir(exist_ok=True)
    done = run(*words, folder=place)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "x").exists()
