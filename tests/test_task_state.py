"""A fitted task is a value: what it was given stays as it is, refits leave nothing behind, updates give a new task."""

import copy
import threading
import time

import numpy as np
import pandas as pd
import pytest
from test_task import Narrower, Teachable, little, quick, same
from tiny import sentence_model

from recotransfer.data import Filter, IdMap, Interactions, Items
from recotransfer.encoders import HashingText, SentenceText
from recotransfer.errors import InputError
from recotransfer.recommenders import EASE, HybridItems, RidgeProfiles
from recotransfer.task import TransferTask
from recotransfer.transfer import RidgeMap, Whitening


def thing(name, number, **cells):
    columns = {"title": [f"thing {number}"], "price": [float(number)], **{key: [cell] for key, cell in cells.items()}}
    return Items(IdMap([name]), pd.DataFrame(columns), {"title": "text", "price": "number"})


def click(user, item, at=9.0):
    return Interactions.from_frame(pd.DataFrame({"user": [user], "item": [item], "time": [at]}), time="time")


def test_a_recommender_a_transfer_and_a_tuner_given_to_two_tasks_keep_their_meaning_in_both():
    model, maps, tuner = RidgeProfiles(), [Whitening(dim=3), RidgeMap()], Narrower()
    given = [model, *maps, tuner]
    before = [dict(vars(each)) for each in given]
    settings = {"encoders": [Teachable()], "transfers": maps, "tuners": {"text": tuner}}
    first = quick(model, **settings).fit(*little())
    answer = first.recommend(k=3), first.label(little()[0], 2)
    other = quick(model, **settings).fit(*little(items=9, users=6))
    assert [vars(each) for each in given] == before
    for old, new in zip(answer, (first.recommend(k=3), first.label(little()[0], 2)), strict=True):
        same(old, new)
    assert len(first.recommender.catalogue_) == 5
    assert len(other.recommender.catalogue_) == 9
    assert {"text"} == set(first.tuning_reports_)


def test_a_refit_on_another_catalogue_leaves_nothing_of_the_former():
    task = quick(encoders=[HashingText()]).fit(*little(in_stock=[True] * 5))
    task.partial_fit(thing("n1", 3), click("u9", "n1"))
    items = Items(IdMap(["a", "b", "c"]), pd.DataFrame({"title": ["x y", "y z", "z x"]}), {"title": "text"})
    log = Interactions.from_frame(
        pd.DataFrame({"user": ["v", "v", "w"], "item": ["a", "b", "c"], "time": [1.0, 2.0, 3.0]}), time="time"
    )
    task.fit(items, log)
    fresh = quick(encoders=[HashingText()]).fit(items, log)
    assert list(task.recommender.item_columns_) == ["title"]
    assert task.kinds_ == {"title": "text"}
    assert sorted(vars(task)) == sorted(vars(fresh))
    assert sorted(vars(task.recommender)) == sorted(vars(fresh.recommender))
    same(task.recommend(k=2), fresh.recommend(k=2))
    with pytest.raises(InputError, match="no column 'in_stock'"):
        task.recommend(filter=Filter(where="in_stock"))


def test_a_fit_that_fails_leaves_the_task_as_it_was():
    task = quick(encoders=[HashingText()]).fit(*little())
    before = task.recommend(k=3)
    items, log = little(items=3)
    with pytest.raises(InputError, match="no interactions"):
        task.fit(items, log.select(np.zeros(0, np.int64)))
    same(task.recommend(k=3), before)
    assert len(task.recommender.catalogue_) == 5


@pytest.mark.parametrize("encoders", [[HashingText()], []], ids=["content", "behaviour alone"])
def test_an_update_gives_a_new_task_and_leaves_the_old_one(encoders):
    task = quick(encoders=encoders).fit(*little())
    before, state = task.recommend(k=3), dict(vars(task))
    new = task.updated(thing("n1", 3), click("u9", "n1"))
    assert vars(task) == state
    same(task.recommend(k=3), before)
    assert "n1" in new.recommend(["u9"], 6, exclude_seen=False, filter=Filter(where="price == 3")).items
    assert new.recommender.update_["items"] == 1
    assert task.partial_fit(thing("n1", 3), click("u9", "n1")) is task
    same(task.recommend(k=3), new.recommend(k=3))


def test_new_items_are_ranked_and_filtered_for_one_request():
    task = quick(encoders=[HashingText()]).fit(*little(in_stock=[False] * 5))
    new = Items(
        IdMap(["n1", "n2"]),
        pd.DataFrame({"title": ["thing 3", "thing 4"], "price": [1.0, 2.0], "in_stock": [True, False]}),
        {"title": "text", "price": "number"},
    )
    found = task.recommend(["u0"], 7, items=new, filter=Filter(where="in_stock"), exclude_seen=False)
    assert [item for item in found.items[0] if item is not None] == ["n1"]
    assert len(task.recommender.catalogue_) == 5


def test_similar_items_of_a_task_give_reasons():
    found = quick(encoders=[HashingText()]).fit(*little()).similar_items(["i0"], 2, reason=True)
    assert found.reason is not None


def asked(task):
    only = Filter(where="price >= 0")
    return task.recommend(["u0", "u1"], 3, filter=only, exclude_seen=False), task.similar_items(["i0"], 3, filter=only)


@pytest.mark.parametrize("way", ["partial_fit", "updated"])
def test_no_request_fails_or_mixes_two_tasks_while_another_thread_updates_again_and_again(way):
    """Each update adds an item that everybody has, so that an answer made of two models would show."""
    items, log = little(items=6, users=8)
    shop = {"task": quick(HybridItems(), encoders=[HashingText(dim=16)]).fit(items, log)}
    answers, failures, ready, done = [], [], threading.Barrier(4), threading.Event()

    def read():
        ready.wait()
        while not done.is_set():
            time.sleep(0.001)  # leaves the updates a share of the processor
            try:
                answers.append(asked(shop["task"]))
            except Exception as cause:
                failures.append(repr(cause))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()

    ready.wait()
    known = {6: copy.copy(shop["task"])}
    for number in range(25):
        name = f"n{number}"
        events = pd.DataFrame({"user": log.users.ids, "item": name, "time": 100.0 + number})
        update = thing(name, number), Interactions.from_frame(events, time="time")
        if way == "partial_fit":
            shop["task"].partial_fit(*update)
        else:
            shop["task"] = shop["task"].updated(*update)

        known[7 + number] = copy.copy(shop["task"])

    done.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(answers) >= 3
    wanted = {size: asked(task) for size, task in known.items()}
    for answer in answers:
        for at, found in enumerate(answer):
            right = wanted[len(found.catalogue)][at]
            assert found.items.tolist() == right.items.tolist()
            np.testing.assert_allclose(found.scores, right.scores, rtol=1e-4)


def test_the_task_keeps_the_settings_of_the_recommender_it_was_given():
    model = EASE(reg=7.0)
    task = TransferTask(model, encoders=[], progress=False).fit(*little())
    assert task.recommender is not model
    assert task.recommender.params() == model.params()
    assert not hasattr(model, "catalogue_")


# -- what an update and a saved folder hold ----------------------------------------------------------------------------


def test_a_task_saved_without_its_events_recommends_for_histories_and_takes_new_items(tmp_path):
    catalogue, log = little(in_stock=[True] * 5)
    task = quick(encoders=[HashingText()]).fit(catalogue, log)
    task.save(tmp_path / "m", events=False)
    again = TransferTask.load(tmp_path / "m")
    same(again.recommend(k=3, histories=log), task.recommend(k=3, histories=log))
    assert "n1" in again.extend(thing("n1", 3)).recommend(["u0"], 6, histories=log).items
    for ask in (again.recommend, lambda: again.audience(["i0"]), lambda: again.partial_fit(catalogue, log)):
        with pytest.raises(InputError, match="was saved without its events, so it knows no users"):
            ask()
    assert len(task.recommend(k=1)) == 3


def test_an_update_whose_ids_are_of_another_type_is_about_the_same_users_and_items():
    log = pd.DataFrame({"user": ["5", "5", "6"], "item": ["1", "2", "1"], "time": [1.0, 2.0, 3.0]})
    items = Items(IdMap(["1", "2", "3"]), pd.DataFrame({"title": ["a b", "b c", "c a"]}), {"title": "text"})
    task = quick(encoders=[HashingText()]).fit(items, Interactions.from_frame(log, time="time", items=items.ids))
    event = Interactions.from_frame(pd.DataFrame({"user": [5], "item": [4], "time": [9.0]}), time="time")
    new = Items(IdMap([3, 4]), pd.DataFrame({"title": ["z", "c d"]}), {"title": "text"})
    updated = task.updated(new, event)
    assert updated.recommender.events_.users.ids.tolist() == ["5", "6"]
    assert updated.recommender.catalogue_.ids.tolist() == ["1", "2", "3", "4"]
    assert updated.recommender.update_["users"] == 0
    assert task.extend(new).recommender.catalogue_.ids.tolist() == ["1", "2", "3", "4"]
    assert task.audience([1], 2)["item"].tolist() == task.audience(["1"], 2)["item"].tolist()


def test_a_saved_task_encodes_from_any_working_folder_and_where_the_encoder_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence_model(tmp_path, ["thing", "no"])
    task = quick(encoders=[SentenceText(model="model", precision="float32")]).fit(*little())
    task.save("saved")
    grown = task.extend(thing("n1", 3)).recommend(k=3)
    (tmp_path / "model").rename(tmp_path / "gone")
    monkeypatch.chdir("/")
    same(TransferTask.load(tmp_path / "saved").extend(thing("n1", 3)).recommend(k=3), grown, 1e-5)
