"""Read Parquet files, and folders of Parquet shards, as one table.

Folders may be partitioned in the style of Hive: a folder called `day=2024-01-05` adds a column `day`.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from recotransfer.errors import InputError

_MISSING = "__HIVE_DEFAULT_PARTITION__"  # stands for a missing value in folder names
_DATE_KEYS = ("year", "month", "day")


def read_parquet(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a Parquet file, or all shards below a folder in the order of their paths.

    Returns:
        One frame, and notes for the read report on columns that were made from folder names.

    Raises:
        InputError: no shard, a damaged one, or shards with different columns, types or partition columns.
    """
    if not path.is_dir():
        return _to_frame(_read(path)), ()

    shards = sorted(p for p in path.rglob("*.parquet") if not _is_hidden(p.relative_to(path)))
    if not shards:
        raise InputError(f"{path}: the folder holds no .parquet file; give a Parquet file, or a folder of shards")

    tables: list[pa.Table] = []
    for shard in shards:
        tables.append(_read(shard))
        if set(tables[-1].column_names) != set(tables[0].column_names):
            raise InputError(
                f"{shard}: has the columns {', '.join(tables[-1].column_names)} where {shards[0].name} has "
                f"{', '.join(tables[0].column_names)}; give shards of one table"
            )

    partitions = _partition_values(path, shards)
    try:
        whole = pa.concat_tables([t.select(tables[0].column_names) for t in tables], promote_options="permissive")
    except pa.ArrowException as cause:
        raise InputError(
            f"{path}: the shards have columns of different types ({cause}); write all with one schema"
        ) from None

    frame = _to_frame(whole)
    sizes = [table.num_rows for table in tables]

    # A column in the files wins over a partition column of the same name.
    added = {name: _to_column(values, sizes) for name, values in partitions.items() if name not in frame.columns}
    for name, column in added.items():
        frame[name] = column.set_axis(frame.index)

    notes = [f"columns from folder names: {', '.join(added)}"] if added else []
    if added.keys() >= set(_DATE_KEYS) and "date" not in frame.columns:
        dates = list(zip(*(added[name] for name in _DATE_KEYS), strict=True))
        if all(str(number).isdigit() for number in {number for date in dates for number in date}):
            frame["date"] = ["-".join(f"{int(number):02d}" for number in date) for date in dates]
            notes.append("column 'date' made from the folder names' year, month and day")

    return frame, tuple(notes)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    # Integers with gaps become Python objects: as floats, large ids would lose digits.
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame


def _is_hidden(path: Path) -> bool:
    """Whether the file or a folder above it belongs to the writer's bookkeeping, as `_delta_log` does."""
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _read(shard: Path) -> pa.Table:
    try:
        return parquet.ParquetFile(shard).read()
    except (pa.ArrowException, OSError) as cause:
        raise InputError(f"{shard}: not a complete Parquet file ({cause}); write it or download it again") from None


def _partition_values(path: Path, shards: list[Path]) -> dict[str, list[str | None]]:
    """Partition column -> its value for each shard, from the names of the folders that the shard lies in."""
    by_shard: list[dict[str, str | None]] = []
    for shard in shards:
        pairs = [part.split("=", 1) for part in shard.relative_to(path).parts[:-1] if "=" in part]
        by_shard.append({unquote(k): None if v == _MISSING else unquote(v) for k, v in pairs})
        if by_shard[-1].keys() != by_shard[0].keys():
            raise InputError(
                f"{shard}: its folders name the columns {', '.join(by_shard[-1]) or '(none)'} where those of "
                f"{shards[0]} name {', '.join(by_shard[0]) or '(none)'}; give shards of one table"
            )

    return {name: [values[name] for values in by_shard] for name in by_shard[0]}


def _to_column(values: list[str | None], sizes: list[int]) -> pd.Series:
    """Repeat each shard's value for its rows: as integers if all are written as such, else as text.

    "007" and "2024-01-05" stay text.
    """
    filled = [v for v in values if v is not None]
    whole = bool(filled) and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", v, re.ASCII) for v in filled)  # fits into int64
    cells: list[int | str | None] = []
    for value, size in zip(values, sizes, strict=True):
        cells += [int(value) if whole and value is not None else value] * size

    return pd.Series(cells, dtype="int64" if whole and len(filled) == len(values) else object)
