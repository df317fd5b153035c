"""`recotransfer adapt` and `label` from end to end on small tables."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest


def run(*words, folder):
    return subprocess.run(
        [sys.executable, "-m", "recotransfer", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


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
    pd.DataFrame({"sequence": sequences, "label": marked.astype(int)}).to_csv(folder / "dna.csv", index=False)
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
    assert told["arms"][0]["AUC"] == pytest.approx(float(figures["AUC"]), abs=1e-4)
    done = run("label", "model", "new.csv", "--out", "labels.csv", "--k", "2", folder=place)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(place / "labels.csv")
    assert found["row"].nunique() == 200
    np.testing.assert_allclose(found.groupby("row")["score"].sum(), 1, atol=1e-5)
    truth = pd.read_csv(place / "patients.csv")["diagnosis"].to_numpy()
    assert (found[found["rank"] == 1]["label"].to_numpy() == truth).mean() > 0.9


def test_parquet_goes_out_too(model, place):
    assert run("label", "model", "new.csv", "--out", "labels.parquet", folder=place).returncode == 0
    assert pd.read_parquet(place / "labels.parquet").columns.tolist() == ["row", "label", "rank", "score"]


def test_sequences_are_learned(place):
    done = run("adapt", "medical", "dna.csv", "--of", "dna", "--positive", "1", "--out", "dna-model", folder=place)
    assert done.returncode == 0, done.stderr
    figures = dict(zip(*[line.split(",") for line in done.stdout.splitlines()[:2]], strict=True))
    assert float(figures["AUC"]) > 0.9


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
        (["label", "model", "new.csv", "--out", "x.txt"], "end the name in .csv or .parquet"),
        (["label", "model", "empty", "--out", "x.csv"], "reads no pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(model, place, words, says):
    (place / "empty").mkdir(exist_ok=True)
    done = run(*words, folder=place)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "x").exists()
