"""Folders of models: which files a copy needs, and how a model is named so that the same files are found again."""

import pytest

from recotransfer.encoders import encoder_spec, store_encoders, stored_encoders
from recotransfer.encoders.models import files_to_store, folder_revision, model_folder, model_label, pinned, unpinned
from recotransfer.encoders.text import SentenceText
from recotransfer.errors import InputError
from recotransfer.io.artifacts import open_artifact, write_artifact


def model(root, *files):
    for name in files or ("config.json", "model.safetensors"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def stored(encoder, folder):
    specs = []
    write_artifact(folder, "Test", lambda writer: specs.extend(store_encoders([encoder], writer)))
    return specs


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (["config.json", "model.safetensors", "1_Pooling/config.json"], 3),
        (["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"], 2),
        (["config.json", "model.safetensors", ".gitattributes", ".cache/huggingface/x.metadata"], 2),
        (["config.json", "pytorch_model.bin"], None),
        (["config.json", "model.safetensors", "2_Dense/pytorch_model.bin"], None),
        (["config.json", "model.safetensors", "modeling.py"], None),
        (["config.json"], None),
    ],
)
def test_a_copy_holds_all_files_that_a_model_needs_or_is_not_made(tmp_path, files, kept):
    found = files_to_store(model(tmp_path, *files))
    assert (None if found is None else len(found)) == kept


def test_a_given_model_in_a_local_folder_is_stored_with_what_uses_it(tmp_path):
    encoder = SentenceText(model=model(tmp_path / "mini", "config.json", "model.safetensors", "pytorch_model.bin"))
    specs = stored(encoder, tmp_path / "a")
    assert specs[0]["model"] is None
    back = stored_encoders(specs, open_artifact(tmp_path / "a"))[0]
    assert back.folder == tmp_path / "a" / "encoder 0" / "mini"
    assert sorted(p.name for p in back.folder.iterdir()) == ["config.json", "model.safetensors"]
    again = stored(back, tmp_path / "b")
    assert stored_encoders(again, open_artifact(tmp_path / "b"))[0].folder == tmp_path / "b" / "encoder 0" / "mini"


def test_a_model_that_cannot_be_stored_is_named_by_its_absolute_path_and_its_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = model(tmp_path / "mini", "config.json", "pytorch_model.bin")
    specs = stored(SentenceText(model="mini"), tmp_path / "a")
    assert specs[0]["model"] == f"{folder}@{folder_revision(folder)}"
    monkeypatch.chdir("/")
    back = stored_encoders(specs, open_artifact(tmp_path / "a"))[0]
    assert back.folder == folder
    assert model_label(back.model) == "mini"
    assert stored(back, tmp_path / "b") == specs, "saved again it keeps its revision"
    (folder / "config.json").write_text("other")
    with pytest.raises(InputError, match=r"mini holds revision \w+ of the model, the fit had \w+; put that one back"):
        _ = stored_encoders(specs, open_artifact(tmp_path / "a"))[0].folder
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"mini, the encoder's folder in the fit, is gone; put the model"):
        _ = stored_encoders(specs, open_artifact(tmp_path / "a"))[0].folder


def test_a_model_of_the_hub_is_named_with_the_revision_of_the_fit(tmp_path, monkeypatch):
    snapshot = model(tmp_path / "snapshot")
    asked = []

    def download(name, **_):
        asked.append(name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = SentenceText(model="org/mini", precision="float32")
    assert encoder.name == f"SentenceText/mini@{folder_revision(snapshot)}/float32"
    specs = stored(encoder, tmp_path / "a")
    assert specs[0]["model"] == f"org/mini@{folder_revision(snapshot)}"
    back = stored_encoders(specs, open_artifact(tmp_path / "a"))[0]
    assert asked == ["org/mini"], "neither saving nor loading asks the hub"
    assert back.name == encoder.name, "so that cached vectors are found"
    (snapshot / "config.json").write_text("the model was changed on the hub")
    with pytest.raises(InputError, match="org/mini holds revision"):
        model_folder(back.model)


def test_what_was_not_used_and_what_is_packaged_is_named_as_it_came(tmp_path):
    assert stored(SentenceText(model="org/mini"), tmp_path / "a")[0]["model"] == "org/mini"
    assert stored(SentenceText(), tmp_path / "b")[0] == encoder_spec(SentenceText())
    assert pinned("org/mini@0123456789ab", "x@ba9876543210") == "org/mini@0123456789ab"
    assert unpinned("org/mini@0123456789ab") == "org/mini"


def test_a_model_saved_over_the_one_that_was_loaded_is_never_taken_for_it(tmp_path):
    specs = stored(SentenceText(model=model(tmp_path / "mini")), tmp_path / "a")
    back = stored_encoders(specs, open_artifact(tmp_path / "a"))[0]
    other = model(tmp_path / "other" / "mini")
    (other / "model.safetensors").write_text("other weights")
    stored(SentenceText(model=other), tmp_path / "a")
    with pytest.raises(InputError, match="holds revision"):
        _ = back.folder


def test_a_copy_of_a_stored_model_is_whole_whatever_is_saved_meanwhile(tmp_path):
    stored(SentenceText(model=model(tmp_path / "mini")), tmp_path / "a")
    artifact = open_artifact(tmp_path / "a")
    stored(
        SentenceText(model=model(tmp_path / "larger", "config.json", "model.safetensors", "more.json")), tmp_path / "a"
    )
    with artifact.copy_of_model("encoder 0") as folder:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: name for name in ("config.json", "model.safetensors")
        }
