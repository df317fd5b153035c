"""Sources that are no file are refused in a sentence that names the way."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recotransfer.data import IdMap
from recotransfer.errors import InputError
from recotransfer.io.readers import read_ids, read_interactions, read_items
from recotransfer.io.tables import read_table


class Lazy:
    def collect(self):
        return self


class Spark:
    def toPandas(self):
        return self


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([1, 2], ["list", "pandas.DataFrame(table)"]),
        ([{"user": 1}], ["list", "pandas.DataFrame(table)"]),
        ({"user": [1]}, ["dict", "pandas.DataFrame(table)"]),
        (np.ones((2, 2)), ["ndarray", "pandas.DataFrame(table)"]),
        (pa.table({"user": [1]}), ["Table", "table.to_pandas()"]),
        (Lazy(), ["Lazy", "table.collect().to_pandas()"]),
        (Spark(), ["Spark", "table.toPandas()"]),
        (pd.Series([1], name="user"), ["Series", "series.to_frame()"]),
        (io.StringIO("user,item\n"), ["StringIO", "path of the file"]),
        (None, ["NoneType", "CSV", "Parquet"]),
        (7, ["int", "CSV", "Parquet"]),
        (b"events.csv", ["bytes", "CSV", "Parquet"]),
        ("", ["path of the table is empty"]),
        ("s3://shop/events.parquet", ["download it first", "aws s3 cp"]),
        (Path("s3://shop/events.parquet"), ["download it first", "aws s3 cp"]),
        ("gs://shop/events.parquet", ["download it first", "gcloud"]),
        ("abfss://c@shop/events", ["download it first", "azcopy"]),
        ("hdfs://shop/events", ["download it first", "hdfs"]),
        ("https://shop.example/events.csv", ["download it first", "curl"]),
        ("file:///tmp/events.csv", ["without file://"]),
        ("jdbc:postgresql://host/shop", ['without "jdbc:"']),
        ("mongodb://host/shop#events", ["not an SQL database", "export"]),
        ("nosuchdb://host/shop#events", ["nosuchdb", "sqlite"]),
    ],
    ids=lambda value: str(type(value).__name__ if not isinstance(value, (str, list)) else value)[:40],
)
def test_sources_that_are_no_table_are_refused_in_a_sentence(source, words):
    for read in (read_table, read_items, read_interactions):
        with pytest.raises(InputError) as caught:
            read(source)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)


def test_lists_of_ids_are_refused_in_the_same_sentence():
    with pytest.raises(InputError, match=r"pandas\.DataFrame"):
        read_ids(["a"], role="item", known=IdMap(["a"]))


def test_arrow_backed_frames_are_read_as_others():
    frame = pd.DataFrame({"user": ["5", "6"], "item": [1, 2], "time": pd.to_datetime(["2024-01-01", "2024-01-02"])})
    plain, arrow = read_interactions(frame), read_interactions(frame.convert_dtypes(dtype_backend="pyarrow"))
    assert plain.data.users == arrow.data.users
    assert plain.data.items == arrow.data.items
    assert plain.data.time.tolist() == arrow.data.time.tolist()
