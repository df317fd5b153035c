"""Batch jobs: killed and resumed to the same bytes, damaged shards, types of ids, memory, folders that are taken."""

import os
import signal
import subprocess
import sys
import tracemalloc
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recotransfer.cli.main import main
from recotransfer.data import Filter, IdMap, Interactions, Items
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.io.artifacts import sha256
from recotransfer.recommenders import BPR, HybridItems, ItemKNN, Popularity
from recotransfer.serving import batch
from recotransfer.serving.batch import BatchJob
from recotransfer.task import TransferTask


def log(users=300, items=60, user_id="u{}".format, item_id="i{}".format, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 6)
    item = (rng.integers(items // 4, size=len(user)) * 4 + user % 4) % items
    ids = IdMap([user_id(u) for u in range(users)]), IdMap([item_id(i) for i in range(items)])
    return Interactions(*ids, user, item, np.ones(len(user), np.float32), np.arange(len(user), dtype=float))


@pytest.fixture(scope="session")
def model():
    return ItemKNN().fit(log())


def job(out, **settings):
    return BatchJob(out, **{"k": 5, "shard": 40, "progress": False, **settings})


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_shards_and_manifest(model, tmp_path):
    manifest = job(tmp_path).run(model, model="m")
    assert sorted(content(tmp_path)) == ["_job.json", "_manifest.json", *(f"part-{i:05d}.parquet" for i in range(8))]
    assert [s["users"] for s in manifest["shards"]] == [40] * 7 + [20]
    table = pd.read_parquet(tmp_path)
    assert len(table) == sum(s["rows"] for s in manifest["shards"])
    assert list(table) == ["user", "item", "rank", "score"]
    pd.testing.assert_frame_equal(table, model.recommend(k=5).to_frame(), check_dtype=False)
    assert (table["rank"].dtype, table["score"].dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("shard", [1, 7, 300, 10_000])
def test_the_size_of_shards_changes_no_row(model, tmp_path, shard):
    job(tmp_path, shard=shard, reason=True).run(model, model="m", users=[f"u{i}" for i in range(30)])
    expected = model.recommend([f"u{i}" for i in range(30)], 5, reason=True).to_frame()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), expected, check_dtype=False)
    assert pd.read_parquet(tmp_path)["reason"].str.contains("because of").all()


def test_users_filters_and_seen_items(model, tmp_path):
    only = Filter(allow=["i0", "i1", "i2", "i3", "i4"], deny=["i0"])
    job(tmp_path / "a", filter=only, exclude_seen=False).run(model, model="m", users=["u9", "u1"])
    table = pd.read_parquet(tmp_path / "a")
    assert table["user"].unique().tolist() == ["u9", "u1"]
    assert set(table["item"]) == {"i1", "i2", "i3", "i4"}
    with pytest.raises(UnknownIdError, match="'nobody'"):
        job(tmp_path / "b").run(model, model="m", users=["u1", "nobody"])
    with pytest.raises(InputError, match="no item passes the filter"):
        job(tmp_path / "b", filter=Filter(allow=[])).run(model, model="m")
    with pytest.raises(InputError, match="shard must be at least 1"):
        job(tmp_path / "b", shard=0).run(model, model="m")
    with pytest.raises(InputError, match="k must be at least 1"):
        job(tmp_path / "b", k=0).run(model, model="m")
    assert not (tmp_path / "b").exists()


def test_new_users_come_by_their_histories(model, tmp_path):
    frame = pd.DataFrame({"user": ["a", "b", "a", "c"], "item": ["i0", "i1", "i4", "i2"], "t": [1.0, 2, 3, 4]})
    histories = Interactions.from_frame(frame, time="t")
    job(tmp_path, shard=2).run(model, model="m", histories=histories)
    expected = model.recommend(k=5, histories=histories).to_frame()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), expected, check_dtype=False)
    with pytest.raises(InputError, match="leave histories out"):
        job(tmp_path / "b").run(BPR(dim=4, epochs=2).fit(log()), model="m", histories=histories)
    assert not (tmp_path / "b").exists()


def test_no_users_give_an_empty_table(model, tmp_path):
    manifest = job(tmp_path, reason=True).run(model, model="m", users=[])
    assert manifest["users"] == 0
    table = pd.read_parquet(tmp_path)
    assert list(table) == ["user", "item", "rank", "score", "reason"]
    assert not len(table)


def test_lists_are_never_longer_than_the_catalogue(model, tmp_path):
    job(tmp_path, k=10**12).run(model, model="m", users=["u1"])
    assert len(pd.read_parquet(tmp_path)) < 60


@pytest.mark.parametrize(
    ("make", "dtype"), [(int, np.int64), ("{:03d}".format, "str"), (lambda i: f"é,\n😀{i}", "str"), (float, np.float64)]
)
def test_ids_keep_their_type(tmp_path, make, dtype):
    model = Popularity().fit(log(users=20, user_id=make, item_id=make))
    job(tmp_path, shard=7).run(model, model="m")
    table = pd.read_parquet(tmp_path)
    assert table["user"].dtype == table["item"].dtype == dtype
    assert set(table["user"]) == {make(u) for u in range(20)}


def test_ids_that_no_column_holds_become_text(tmp_path):
    def odd(i):
        return [i, str(i) + "x", UUID(int=i), i + 0.5][i % 4]

    model = Popularity().fit(log(users=20, user_id=odd, item_id=odd))
    job(tmp_path, shard=3).run(model, model="m")
    assert set(pd.read_parquet(tmp_path)["user"]) == {str(odd(u)) for u in range(20)}


def test_a_shard_without_rows_fits_the_others(tmp_path):
    """All shards have one schema, also where a user has seen all that is allowed."""
    events = log(users=4)
    model = Popularity().fit(events)
    seen = events.items.take(events.item[events.user == 0])
    job(tmp_path, shard=1, filter=Filter(allow=seen), reason=True).run(model, model="m")
    assert pq.read_metadata(tmp_path / "part-00000.parquet").num_rows == 0
    assert len({pq.read_schema(p) for p in tmp_path.glob("*.parquet")}) == 1
    assert "u1" in set(pd.read_parquet(tmp_path)["user"])


# -- resuming ----------------------------------------------------------------------------------------------------------


KILLED_AT_THE_THIRD_SHARD = """
import os, signal
from recotransfer.cli.main import main
from recotransfer.serving import batch

write, written = batch.write_parquet, []

def write_parquet(path, *rest):
    write(path, *rest)
    written.append(path)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

batch.write_parquet = write_parquet
main()
"""


def test_a_killed_job_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    events = log(users=200)
    items = Items(events.items, pd.DataFrame({"title": ["x"] * 60}), {"title": "text"})
    task = TransferTask(ItemKNN()).fit(items, events)
    task.save(tmp_path / "model")

    job_words = ["recommend", "model", "--k", "5", "--shard", "5", "--reasons", "--out", "killed"]

    folder = tmp_path / "killed"
    victim = [sys.executable, "-c", KILLED_AT_THE_THIRD_SHARD, *job_words]
    assert subprocess.run(victim, cwd=tmp_path, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(list(folder.glob("part-*"))) == 3
    assert not (folder / "_manifest.json").exists()
    (folder / ".part-00020.parquet.abc123").write_bytes(b"half a shard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recotransfer", *job_words, "--resume"])
    main()
    whole = job(tmp_path / "whole", shard=5, reason=True)
    whole.run(task.recommender, model=sha256(tmp_path / "model" / "manifest.json"))
    assert content(folder) == content(tmp_path / "whole")


def test_only_what_is_missing_or_damaged_is_made_again(model, tmp_path, monkeypatch):
    job(tmp_path).run(model, model="m")
    whole = content(tmp_path)
    (tmp_path / "_manifest.json").unlink()
    (tmp_path / "part-00001.parquet").unlink()
    damaged = bytearray(whole["part-00002.parquet"])
    damaged[30] ^= 1  # within a page: the footer still reads
    (tmp_path / "part-00002.parquet").write_bytes(damaged)
    (tmp_path / "part-00003.parquet").write_bytes(whole["part-00003.parquet"][:-20])
    (tmp_path / "part-00004.parquet").write_bytes(whole["part-00005.parquet"])
    written = []
    monkeypatch.setattr(batch, "write_parquet", lambda path, *a: written.append(path.name) or write(path, *a))
    job(tmp_path).run(model, model="m", resume=True)
    assert content(tmp_path) == whole
    assert written == [f"part-0000{i}.parquet" for i in (1, 2, 3, 4)]


write = batch.write_parquet


def test_resuming_a_finished_job_changes_nothing_but_mends_damage(model, tmp_path):
    first = job(tmp_path).run(model, model="m")
    whole, times = content(tmp_path), [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())]
    assert job(tmp_path).run(model, model="m", resume=True) == first
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())] == times
    (tmp_path / "part-00001.parquet").write_bytes(whole["part-00000.parquet"])
    job(tmp_path).run(model, model="m", resume=True)
    assert content(tmp_path) == whole


def test_another_job_is_refused_by_what_changed(model, tmp_path):
    job(tmp_path).run(model, model="m")
    frame = pd.DataFrame({"user": ["u1"], "item": ["i0"]})
    events = Interactions.from_frame(frame)
    other = Interactions.from_frame(frame.assign(item="i1"))  # the same positions, other items
    later = Interactions.from_frame(frame.assign(t=1.0), time="t")
    for changed, settings, call in [
        ("k", {"k": 6}, {}),
        ("shard", {"shard": 41}, {}),
        ("where", {"filter": Filter(where="price < 3")}, {}),
        ("exclude_seen", {"exclude_seen": False}, {}),
        ("model", {}, {"model": "another"}),
        ("users", {}, {"users": ["u1"]}),
        ("histories, users", {}, {"histories": events}),
    ]:
        model.item_columns_ = pd.DataFrame({"price": np.zeros(60)})
        with pytest.raises(InputError, match=f"another job: {changed} changed"):
            job(tmp_path, **settings).run(model, **{"model": "m", "resume": True, **call})
    job(tmp_path / "h").run(model, model="m", histories=events)
    for histories in (other, later):
        with pytest.raises(InputError, match="another job: histories changed"):
            job(tmp_path / "h").run(model, model="m", histories=histories, resume=True)


def test_taken_folders_and_damaged_descriptions(model, tmp_path):
    job(tmp_path / "a").run(model, model="m")
    with pytest.raises(InputError, match="holds an earlier job; continue it with --resume"):
        job(tmp_path / "a").run(model, model="m")
    for text in ("{", "[]", "\xff"):
        (tmp_path / "a" / "_job.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"_job\.json is damaged"):
            job(tmp_path / "a").run(model, model="m", resume=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        job(tmp_path / "b").run(model, model="m")
    with pytest.raises(InputError, match="is a file"):
        job(tmp_path / "b" / "mine.txt").run(model, model="m")


def test_a_full_disk_leaves_no_half_file(model, tmp_path, monkeypatch):
    synced = os.fsync
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        job(tmp_path).run(model, model="m")
    monkeypatch.undo()
    assert sorted(content(tmp_path)) == ["_job.json", "part-00000.parquet", "part-00001.parquet"]
    job(tmp_path).run(model, model="m", resume=True)
    resumed = content(tmp_path)
    job(tmp_path / "whole").run(model, model="m")
    assert content(tmp_path / "whole") == resumed


# -- scale -------------------------------------------------------------------------------------------------------------


def test_memory_follows_the_shard_not_the_users(tmp_path):
    events = log(users=6_000)
    model = HybridItems(neighbours=20).fit(events)
    some = events.users.ids[:1_500]
    peaks = []
    for name, users in (("few", some), ("many", None)):
        tracemalloc.start()
        job(tmp_path / name, shard=500, k=20).run(model, model="m", users=users)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], [f"{p / 2**20:.1f} MiB" for p in peaks]


def test_histories_are_cut_to_the_shard(tmp_path, monkeypatch):
    """Each shard's users come with their own events only: work grows with the users, not with their square."""
    events = log()
    model = ItemKNN().fit(events)
    sizes = []
    own = ItemKNN._own_histories
    monkeypatch.setattr(ItemKNN, "_own_histories", lambda self, h: sizes.append(len(h)) or own(self, h))
    job(tmp_path).run(model, model="m", histories=events)
    assert max(sizes) == 40 * 6
