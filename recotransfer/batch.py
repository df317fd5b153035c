"""Recommendations for everyone as Parquet shards: memory by the shard, atomic writes, resumable to the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from recotransfer.artifacts import atomic_file, sha256
from recotransfer.data import Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.filters import Filter
from recotransfer.task import TransferTask

_JOB, _MANIFEST = "_job.json", "_manifest.json"  # readers of Parquet folders pass over names with an underscore


@dataclass(frozen=True)
class BatchJob:
    """One batch of recommendations into a folder of `part-00000.parquet`, `part-00001.parquet`, ...

    `_job.json` is written first and says what is being made; `_manifest.json` is written last and lists every shard
    with its checksum, so its presence means that the job is done. Shards hold columns user, item, rank, score and, when
    asked for, reason.

    Attributes:
        out: the folder; empty or new, unless `run` resumes.
        k: list length.
        exclude_seen: leave out the items of a user's own history.
        filter: which items may be recommended.
        reason: also write why.
        shard: users per file; memory depends on it, not on the number of users.
        progress: show a bar with rate and time left.
    """

    out: Path
    k: int = 10
    exclude_seen: bool = True
    filter: Filter | None = None
    reason: bool = False
    shard: int = 20_000
    progress: bool = True

    def run(
        self,
        task: TransferTask,
        *,
        model: str,
        users: ArrayLike | None = None,
        histories: Interactions | None = None,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Write all shards and return the manifest.

        Args:
            task: what recommends.
            model: fingerprint of `task`, such as the checksum of its saved manifest; a resumed job must have the same.
            users: ids; by default everyone in `histories`, or everyone the model knows.
            histories: what is known of each user now, see `Recommender.recommend`.
            resume: go on with an interrupted job of the same description.
        """
        if self.shard < 1:
            raise InputError(f"shard must be at least 1 user, got {self.shard}")
        known = task.recommender.events_.users if histories is None else histories.users
        asked = known.ids if users is None else known.take(known.positions(users))
        job = self._describe(model, asked, histories)
        self._begin(job, resume)
        task = task.for_batch()
        shards = []
        with tqdm(total=len(asked), unit=" users", disable=not self.progress, desc="recommending") as bar:
            for number, first in enumerate(range(0, len(asked), self.shard)):
                path = self.out / f"part-{number:05d}.parquet"
                batch = asked[first : first + self.shard]
                if not path.exists():
                    found = task.recommend(
                        batch,
                        self.k,
                        exclude_seen=self.exclude_seen,
                        filter=self.filter,
                        histories=histories,
                        reason=self.reason,
                    )
                    write_parquet(path, found)
                shards.append({"file": path.name, "users": len(batch), "sha256": sha256(path)})
                bar.update(len(batch))
        manifest = {"job": job, "users": len(asked), "shards": shards}
        _write_json(self.out / _MANIFEST, manifest)
        return manifest

    def _describe(self, model: str, asked: NDArray[Any], histories: Interactions | None) -> dict[str, Any]:
        filter = self.filter or Filter()
        allowed = None if filter.allow is None else _digest(np.asarray(filter.allow))
        return {
            "model": model,
            "k": self.k,
            "exclude_seen": self.exclude_seen,
            "reason": self.reason,
            "shard": self.shard,
            "where": filter.where,
            "allow": allowed,
            "deny": _digest(np.asarray(filter.deny)) if len(filter.deny) else None,
            "users": _digest(asked),
            "histories": None if histories is None else _digest(histories.user, histories.item, histories.weight),
        }

    def _begin(self, job: dict[str, Any], resume: bool) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / _JOB
        if not path.exists():
            if any(p for p in self.out.iterdir() if not p.name.startswith(".")):
                raise InputError(f"{self.out} holds other files; give a new or empty folder for --out")
            _write_json(path, job)
            return
        if not resume:
            raise InputError(f"{self.out} holds an earlier job; go on with it by --resume, or give another folder")
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if changed := sorted(name for name in job if earlier.get(name) != job[name]):
            raise InputError(
                f"{self.out} holds another job: {', '.join(changed)} changed; give another folder, or the same settings"
            )


def write_parquet(path: Path, found: Recommendations) -> None:
    """Write one table of recommendations atomically; rows without an item are left out."""
    table = pa.Table.from_pandas(found.to_frame(), preserve_index=False)
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata(None), file, compression="zstd")


def _write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _digest(*arrays: NDArray[Any]) -> str:
    out = hashlib.sha256()
    for array in arrays:
        if array.dtype == object or array.dtype.kind not in "iufb":
            for value in array.tolist():
                out.update(f"{type(value).__name__}:{value}\0".encode())
        else:
            out.update(np.ascontiguousarray(array).tobytes())
    return out.hexdigest()
