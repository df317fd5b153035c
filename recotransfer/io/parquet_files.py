"""Parquet files and folders of them as tables, with the columns that the names of folders hold (`day=2024-01-05`)."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from recotransfer.errors import InputError

_EMPTY_KEY = "__HIVE_DEFAULT_PARTITION__"
_DATE_KEYS = ("year", "month", "day")


def read_parquet(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The file, or all shards below the folder in order of their names, as one frame, and notes on it."""
    if not path.is_dir():
        return _to_frame(_read(path)), ()

    shards = sorted(p for p in path.rglob("*.parquet") if not _is_hidden(p.relative_to(path)))
    if not shards:
        raise InputError(f"{path}: the folder holds no .parquet file; give a file, or a folder of Parquet shards")

    tables: list[pa.Table] = []
    for shard in shards:
        tables.append(_read(shard))
        if set(tables[-1].column_names) != set(tables[0].column_names):
            raise InputError(
                f"{shard}: has the columns {', '.join(tables[-1].column_names)} where {shards[0].name} has "
                f"{', '.join(tables[0].column_names)}; give shards of one table"
            )

    keys = _keys(path, shards)
    try:
        whole = pa.concat_tables([t.select(tables[0].column_names) for t in tables], promote_options="permissive")
    except pa.ArrowException as cause:
        raise InputError(f"{path}: the shards have columns of different types ({cause}); write them alike") from None

    frame = _to_frame(whole)
    sizes = [table.num_rows for table in tables]
    added = {name: _typed(values, sizes) for name, values in keys.items() if name not in frame.columns}
    for name, column in added.items():
        frame[name] = column.set_axis(frame.index)

    notes = [f"columns from the names of folders: {', '.join(added)}"] if added else []
    if added.keys() >= set(_DATE_KEYS) and "date" not in frame.columns:
        parts = list(zip(*(added[name] for name in _DATE_KEYS), strict=True))
        if all(str(part).isdigit() for part in {part for date in parts for part in date}):
            frame["date"] = ["-".join(f"{int(part):02d}" for part in date) for date in parts]
            notes.append("column 'date' was made from the folders' year, month and day")

    return frame, tuple(notes)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame


def _is_hidden(path: Path) -> bool:
    """Whether the file, or a folder on the way, is one that writers keep for themselves, as `_delta_log` is."""
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _read(shard: Path) -> pa.Table:
    try:
        return parquet.ParquetFile(shard).read()
    except (pa.ArrowException, OSError) as cause:
        raise InputError(f"{shard}: is no whole Parquet file ({cause}); write or fetch it again") from None


def _keys(path: Path, shards: list[Path]) -> dict[str, list[str | None]]:
    """The columns that folders on the way to the shards are named after, with each shard's value."""
    found: list[dict[str, str | None]] = []
    for shard in shards:
        pairs = [part.split("=", 1) for part in shard.relative_to(path).parts[:-1] if "=" in part]
        found.append({unquote(k): None if v == _EMPTY_KEY else unquote(v) for k, v in pairs})
        if found[-1].keys() != found[0].keys():
            raise InputError(
                f"{shard}: its folders name the columns {', '.join(found[-1]) or '(none)'} where those of {shards[0]} "
                f"name {', '.join(found[0]) or '(none)'}; give shards of one table"
            )

    return {name: [values[name] for values in found] for name in found[0]}


def _typed(values: list[str | None], sizes: list[int]) -> pd.Series:
    """One value per row: whole numbers where all are written as such, text such as "2024-01-05" or "007" otherwise."""
    filled = [v for v in values if v is not None]
    whole = bool(filled) and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", v, re.ASCII) for v in filled)
    cells: list[int | str | None] = []
    for value, size in zip(values, sizes, strict=True):
        cells += [int(value) if whole and value is not None else value] * size

    return pd.Series(cells, dtype="int64" if whole and len(filled) == len(values) else object)
