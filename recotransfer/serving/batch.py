"""Batch recommendations as Parquet shards: memory bounded by the shard, atomic writes, resumable to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recotransfer._version import __version__
from recotransfer.arguments import checked_class
from recotransfer.data import Filter, IdMap, Interactions, Recommendations, positions_like
from recotransfer.errors import InputError
from recotransfer.io.artifacts import digest, digest_of_events, read_json, sha256, write_json
from recotransfer.io.writers import parquet_column, parquet_schema, write_parquet
from recotransfer.progress import progress_bar
from recotransfer.recommenders import Recommender

_JOB, _MANIFEST = "_job.json", "_manifest.json"  # readers of Parquet folders skip names with an underscore
_LEFT_BY_A_KILL = (".part-*.parquet.*", f".{_JOB}.*", f".{_MANIFEST}.*")


@checked_class
@dataclass(frozen=True)
class BatchJob:
    """One batch of recommendations, written to `part-00000.parquet`, `part-00001.parquet`, ... in a folder.

    `_job.json` is written first and describes the job; `_manifest.json` is written last and lists every shard with its
    checksum, so its presence means that the job is done. The columns are user, item, rank, score and, if asked for,
    reason. Ids keep their type; UUIDs and ids of mixed types are written as text.

    Attributes:
        out: the folder; new or empty, unless `run` resumes.
        k: list length.
        exclude_seen: leave out the items of a user's history.
        filter: which items may be recommended.
        reason: also write a reason for each item.
        shard: users per file; memory depends on this, not on the number of users.
        progress: show a bar with rate and time left on a terminal.
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
        recommender: Recommender,
        *,
        model: str,
        users: ArrayLike | None = None,
        histories: Interactions | None = None,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Write all shards and return the manifest.

        Args:
            recommender: a fitted model; it searches exactly even if it has an approximate index.
            model: fingerprint of the recommender, such as the checksum of its saved manifest; a job can only be
                resumed with the same one.
            users: ids; by default all users of `histories`, or all users of the model.
            histories: what is known of each user now, see `Recommender.recommend`.
            resume: continue an interrupted job with the same settings; intact shards are kept, damaged ones are
                written again.

        Raises:
            InputError: settings the model refuses, a filter that no item passes, or a folder with anything else in it.
        """
        recommender, known, asked = self._prepared(recommender, users, histories)

        # One user first: if the model refuses the filter, k or histories, no folder is left behind.
        self._found(recommender, asked[:1], histories)
        schema = parquet_schema(known.ids, recommender.catalogue_, reason=self.reason)
        job = self._describe(model, asked, histories)
        earlier = self._begin(job, resume)
        shards = []

        with progress_bar(len(asked), desc="recommending", unit=" users", shown=self.progress) as bar:
            for number, first in enumerate(range(0, max(len(asked), 1), self.shard)):
                path = self.out / f"part-{number:05d}.parquet"
                batch = asked[first : first + self.shard]
                if not _is_whole(path, batch, schema, earlier.get(path.name)):
                    write_parquet(path, self._found(recommender, batch, histories), schema)

                rows = pq.read_metadata(path).num_rows
                shards.append({"file": path.name, "users": len(batch), "rows": rows, "sha256": sha256(path)})
                bar.update(len(batch))

        manifest = {"job": job, "users": len(asked), "shards": shards}
        if earlier != {s["file"]: s["sha256"] for s in shards}:
            write_json(self.out / _MANIFEST, manifest)

        return manifest

    def lists(
        self, recommender: Recommender, *, users: ArrayLike | None = None, histories: Interactions | None = None
    ) -> Iterator[Recommendations]:
        """The lists of a shard of users at a time, for another writer; `out` is not touched. Arguments as in `run`."""
        recommender, _, asked = self._prepared(recommender, users, histories)
        with progress_bar(len(asked), desc="recommending", unit=" users", shown=self.progress) as bar:
            for first in range(0, max(len(asked), 1), self.shard):
                batch = asked[first : first + self.shard]
                yield self._found(recommender, batch, histories)
                bar.update(len(batch))

    def _prepared(
        self, recommender: Recommender, users: ArrayLike | None, histories: Interactions | None
    ) -> tuple[Recommender, IdMap, NDArray[Any]]:
        """What recommends, all users it may be asked about, and those that are."""
        if self.shard < 1:
            raise InputError(f"shard must be at least 1 user, got {self.shard}")

        recommender = recommender.for_batch()
        known = recommender.known_events().users if histories is None else histories.users
        asked = known.ids if users is None else known.take(positions_like(users, known))
        if self.filter is not None and not self.filter.mask(recommender.catalogue_, recommender.item_columns_).any():
            where = f" {self.filter.where!r}" if self.filter.where else ""
            raise InputError(f"no item passes the filter{where}, with its allowed and denied items; loosen it")

        return recommender, known, asked

    def _found(self, recommender: Recommender, batch: NDArray[Any], histories: Interactions | None) -> Recommendations:
        if histories is not None:  # only those of this shard, because the model sorts all it is given
            mine = np.zeros(len(histories.users), bool)
            mine[histories.users.positions(batch)] = True
            histories = histories.select(mine[histories.user])

        return recommender.recommend(
            batch,
            min(self.k, len(recommender.catalogue_)),
            exclude_seen=self.exclude_seen,
            filter=self.filter,
            histories=histories,
            reason=self.reason,
        )

    def _describe(self, model: str, asked: NDArray[Any], histories: Interactions | None) -> dict[str, Any]:
        filter = self.filter or Filter()

        return {
            "package": __version__,
            "model": model,
            "k": self.k,
            "exclude_seen": self.exclude_seen,
            "reason": self.reason,
            "shard": self.shard,
            "where": filter.where,
            "allow": None if filter.allow is None else digest(filter.allow),
            "deny": digest(filter.deny) if len(filter.deny) else None,
            "users": digest(asked),
            "histories": None if histories is None else digest_of_events(histories),
        }

    def _begin(self, job: dict[str, Any], resume: bool) -> dict[str, str]:
        """Claim the folder; returns file -> checksum of the shards if a finished job lists them."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; give a new or empty folder for the recommendations")

        self.out.mkdir(parents=True, exist_ok=True)
        if not (self.out / _JOB).exists():
            if any(p for p in self.out.iterdir() if not p.name.startswith(".")):
                raise InputError(f"{self.out} holds other files; give a new or empty folder for the recommendations")

            write_json(self.out / _JOB, job)
            return {}

        if not resume:
            raise InputError(f"{self.out} holds an earlier job; continue it with --resume, or give another folder")

        earlier = read_json(self.out / _JOB)
        if changed := sorted(name for name in job if earlier.get(name) != job[name]):
            raise InputError(
                f"{self.out} holds another job: {', '.join(changed)} changed; give another folder, or the same settings"
            )

        for pattern in _LEFT_BY_A_KILL:
            for path in self.out.glob(pattern):
                path.unlink(missing_ok=True)

        if not (self.out / _MANIFEST).exists():
            return {}

        shards = read_json(self.out / _MANIFEST).get("shards", [])

        return {str(shard["file"]): str(shard["sha256"]) for shard in shards}


def _is_whole(path: Path, batch: NDArray[Any], schema: pa.Schema, checksum: str | None) -> bool:
    """True if a shard is intact: by its checksum in the manifest if there is one, otherwise by those of its pages."""
    if not path.exists():
        return False
    if checksum is not None:
        return sha256(path) == checksum

    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError):
        return False

    if table.schema != schema:
        return False

    asked = set(parquet_column(batch, schema.field("user").type).to_pylist())

    return asked.issuperset(table["user"].unique().to_pylist())
