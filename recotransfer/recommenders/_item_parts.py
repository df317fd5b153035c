"""The parts that `LearnedHybrid` adds up: item-item matrices of behaviour and of content, and whitened vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.numerics.ages import steps_of, transitions
from recotransfer.numerics.ridge import local_ridge, unobserved_metric
from recotransfer.numerics.sparse import keep_largest, scaled, without_diagonal
from recotransfer.numerics.vectors import Float, reciprocal, unit_rows
from recotransfer.recommenders._content_kernel import (
    agreed,
    local_scale,
    nearest_cosines,
    roots,
    sharpened,
    stand_ins,
    unit_embeddings,
)

_DECAYS = {"order": 0.6, "wide order": 0.9}  # per step: memory of the last two or three items, and of the last dozen
_PAST, _FUTURE = 1.5, 1.2  # powers of the decay on the two sides of a split: the nearest items predict each other best
_REG, _ORDER_REG = 200.0, 50.0
_SHARPNESS = 5.0  # power of the cosine in the kernels
_UNOBSERVED = 0.1  # weight of the items' second moments against a ridge of 1 in the whitening
_LATELY = 0.1  # share of the log's events
BORROWED = "borrowed co-occurrence"
_JOINT = "far all modalities together"


class Kernel(NamedTuple):
    """What is needed to extend a content kernel: cell = (scaled cosine ** sharpness) * row_root * column_root.

    Attributes:
        vectors: (items, dim) unit rows, zeros where an item has none.
        scale: (items,) mean cosine to the nearest items.
        row_root, column_root: (items,) factors that bring rows to a mean sum of 1.
    """

    vectors: Float
    scale: Float
    row_root: Float
    column_root: Float


@dataclass(frozen=True)
class ItemParts:
    """Parts as fitted, before anything is weighted.

    Attributes:
        users: (items,) number of users of each item.
        lately: (items,) number of events in the last tenth of the log; zeros without times.
        matrices: part -> (items, items), row = item of the history, column = item scored.
        vectors: part -> (items, dim); the score of one item from another is the product of their vectors.
        whitening: part of `vectors` -> (dim, dim) map from unit vectors to them.
        kernels: modality -> its kernel; "" is the kernel of all modalities together, which `lookalikes` come from.
        lookalikes: (items, items) each column a mean of similar items with users; None without content.
    """

    users: NDArray[np.int64]
    lately: NDArray[np.int64]
    matrices: dict[str, sparse.csr_array] = field(default_factory=dict)
    vectors: dict[str, Float] = field(default_factory=dict)
    whitening: dict[str, Float] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    lookalikes: sparse.csr_array | None = None

    @property
    def curve_of(self) -> dict[str, str]:
        """Part -> the name of its weights by age. Borrowed co-occurrence ages as co-occurrence does."""
        names = [*self.matrices, *self.vectors]
        return {name: "co-occurrence" if name == BORROWED else name for name in names}

    @property
    def of_content(self) -> list[str]:
        """The parts that need content."""
        return [name for name in self.curve_of if name == BORROWED or name.startswith(("near ", "far "))]


@dataclass(frozen=True)
class Content:
    """What the vectors of the items say, whatever the log.

    Attributes:
        unit: the vectors with rows of unit length.
        near: modality -> (items, items) cells of its kernel; "" is the kernel of all modalities together.
        kernels, whitening, vectors: as in `ItemParts`.
    """

    unit: Embeddings
    near: dict[str, sparse.csr_array]
    kernels: dict[str, Kernel]
    whitening: dict[str, Float]
    vectors: dict[str, Float]


def behaviour_parts(events: Interactions, neighbours: int, *, by_moment: bool) -> ItemParts:
    """The parts that a log gives for its items; `by_moment` as in `steps_of`.

    - co-occurrence: each item regressed on its `neighbours` best predictors (EASE; Steck, 2019).
    - order and wide order, in timed logs: what comes next regressed on what came before (SLIST; Choi et al., 2021),
      with a short and a long memory.
    """
    steps, n = steps_of(events, by_moment=by_moment), len(events.items)
    shape = (len(events.users), n)
    matrix = sparse.coo_array((steps.strength, (steps.user, steps.item)), shape=shape).tocsr()
    gram = sparse.csr_array(matrix.T @ matrix)
    out = ItemParts(np.bincount(steps.item, minlength=n), _lately(events))
    out.matrices["co-occurrence"] = local_ridge(gram, gram, _REG, neighbours)
    for name, decay in _DECAYS.items() if events.time is not None else ():
        past, future = transitions(steps, n, decay**_PAST, decay**_FUTURE)
        before, after = sparse.csr_array(past.T @ past), sparse.csr_array(past.T @ future)
        out.matrices[name] = local_ridge(before, after, _ORDER_REG, neighbours)

    return out


def content_of(items: Embeddings, neighbours: int) -> Content:
    """The kernels and whitened vectors of the items.

    - near MODALITY: a sharp kernel of locally scaled cosines to the nearest items.
    - far MODALITY: products of whitened vectors, to which every item of the history adds.
    - far all modalities together: the same with the modalities side by side, where there are several.
    """
    unit = unit_embeddings(items)
    out = Content(unit, {}, {}, {}, {})
    out.near[""], out.kernels[""] = _kernel(unit.vectors * unit.has_content[:, None], neighbours)
    for name, vectors in _modalities(unit).items():
        out.near[name], out.kernels[name] = _kernel(vectors, neighbours)

    for name, vectors in _far(unit).items():
        out.whitening[name] = _whitening(vectors)
        out.vectors[name] = vectors @ out.whitening[name]

    return out


def joined(behaviour: ItemParts, content: Content, neighbours: int, *, agree: bool) -> ItemParts:
    """Behaviour and content side by side, with the co-occurrence that items of few users borrow from similar ones.

    Args:
        behaviour: the parts of `behaviour_parts`.
        content: the same items' content.
        neighbours: how many items each item is scored from.
        agree: whether behaviour weighs more between items of similar content.
    """
    matrices = dict(behaviour.matrices)
    if agree:
        matrices = {name: agreed(part, content.unit) for name, part in matrices.items()}

    stand_in = stand_ins(content.near[""], behaviour.users)
    matrices[BORROWED] = _cut(matrices["co-occurrence"] @ stand_in, neighbours)
    for name in [name for name in content.near if name]:
        kernel = content.kernels[name]
        matrices[f"near {name}"] = scaled(content.near[name], kernel.row_root, kernel.column_root)

    return ItemParts(
        behaviour.users,
        behaviour.lately,
        matrices,
        dict(content.vectors),
        dict(content.whitening),
        dict(content.kernels),
        stand_in,
    )


def made_new(parts: ItemParts, content: Content, cold: NDArray[np.bool_], neighbours: int) -> ItemParts:
    """The parts as if the items where `cold` (items,) is True had no users; parts of content alone do not change.

    Rows of these items stay: histories must not contain them.
    """
    users = np.where(cold, 0, parts.users)
    kept = (~cold).astype(np.float32)
    matrices = dict(parts.matrices)
    for name, part in parts.matrices.items():
        if not name.startswith("near "):
            matrices[name] = scaled(part, None, kept)
            matrices[name].eliminate_zeros()

    of_cold = scaled(content.near[""], None, cold.astype(np.float32))
    of_cold.eliminate_zeros()
    borrowed = _cut(matrices["co-occurrence"] @ stand_ins(of_cold, users), neighbours)
    matrices[BORROWED] = sparse.csr_array(matrices[BORROWED] + borrowed)

    return replace(parts, users=users, lately=np.where(cold, 0, parts.lately), matrices=matrices)


def extended_parts(parts: ItemParts, items: Embeddings, neighbours: int) -> ItemParts:
    """The parts with rows and columns for new items, as a fit gives items without users; old cells stay."""
    unit = unit_embeddings(items)
    n, m = len(parts.users), len(items.ids)
    near, whole = _extended_kernel(parts.kernels[""], unit.vectors * unit.has_content[:, None], neighbours)
    stand_in = stand_ins(near, parts.users)
    kernels, matrices, vectors = {"": whole}, {}, {}

    # In a history, a new item stands for the items that it looks like; as a candidate it borrows from them.
    for name, part in parts.matrices.items():
        if not name.startswith("near "):
            row = _cut(sparse.csr_array(part.T) @ stand_in, neighbours).T
            column = _cut(parts.matrices["co-occurrence"] @ stand_in, neighbours) if name == BORROWED else _none(n, m)
            matrices[name] = _bordered(part, row, column)

    for name, fresh in _modalities(unit).items():
        near, kernels[name] = _extended_kernel(parts.kernels[name], fresh, neighbours)
        row_root, column_root = kernels[name].row_root, kernels[name].column_root
        column = scaled(near, row_root[:n], column_root[n:])
        row = scaled(sparse.csr_array(near.T), row_root[n:], column_root[:n])
        matrices[f"near {name}"] = _bordered(parts.matrices[f"near {name}"], row, column)

    far = _far(unit)
    for name, old in parts.vectors.items():
        vectors[name] = np.concatenate([old, far[name] @ parts.whitening[name]])

    return replace(
        parts,
        users=np.pad(parts.users, (0, m)),
        lately=np.pad(parts.lately, (0, m)),
        matrices={name: matrices[name] for name in parts.matrices},
        vectors=vectors,
        kernels=kernels,
        lookalikes=_bordered(parts.lookalikes, _none(m, n), stand_in),
    )


def with_content(
    parts: ItemParts,
    items: Embeddings,
    lookalikes: sparse.csr_array,
    kernels: Mapping[str, Sequence[Float]],
    whitening: Mapping[str, Float],
) -> ItemParts:
    """Parts as loaded, with what content adds: `kernels` has scale, row and column roots of each modality."""
    unit = unit_embeddings(items)
    modalities = _modalities(unit)
    vectors = {"": unit.vectors * unit.has_content[:, None], **modalities}
    return replace(
        parts,
        lookalikes=lookalikes,
        kernels={name: Kernel(vectors[name], *arrays) for name, arrays in kernels.items()},
        whitening=dict(whitening),
        vectors={name: vectors @ whitening[name] for name, vectors in _far(unit).items() if name in whitening},
    )


def _lately(events: Interactions) -> NDArray[np.int64]:
    """(items,) number of events of each item in the last tenth of the log, by time."""
    if events.time is None or not len(events):
        return np.zeros(len(events.items), np.int64)

    late = events.time >= np.quantile(events.time, 1 - _LATELY)
    return np.bincount(events.item[late], minlength=len(events.items))


def _modalities(items: Embeddings) -> dict[str, Float]:
    """Unit vectors (items, width) of each modality; zeros for items without content."""
    out, first = {}, 0
    for name, width in items.blocks:
        out[name] = unit_rows(np.ascontiguousarray(items.vectors[:, first : first + width]))
        out[name] *= items.has_content[:, None]
        first += width

    return out


def _far(unit: Embeddings) -> dict[str, Float]:
    """Unit vectors (items, width) of each modality, and of all modalities side by side where there are several."""
    out = {f"far {name}": vectors for name, vectors in _modalities(unit).items()}
    return out if len(out) == 1 else {**out, _JOINT: unit.vectors * unit.has_content[:, None]}


def _kernel(vectors: Float, neighbours: int) -> tuple[sparse.csr_array, Kernel]:
    """(items, items) locally scaled cosines of the nearest ** sharpness, and what extends them."""
    cosines = nearest_cosines(vectors, vectors, (vectors != 0).any(axis=1), neighbours)
    scale = local_scale(cosines)
    near = without_diagonal(sharpened(cosines, scale, scale, _SHARPNESS))
    row, column = roots(near.sum(axis=1)), roots(near.sum(axis=0))
    total = scaled(near, row, column).sum(axis=1)
    level = reciprocal(total[total > 0].mean(keepdims=True))[0] if total.any() else 0.0

    return near, Kernel(vectors, scale, np.asarray(level * row, np.float32), column)


def _extended_kernel(kernel: Kernel, fresh: Float, neighbours: int) -> tuple[sparse.csr_array, Kernel]:
    """(old items, new items) cells of the kernel before the roots, and the kernel of old and new items."""
    old = kernel.vectors
    cosines = nearest_cosines(fresh, old, (old != 0).any(axis=1), neighbours)
    scale = local_scale(cosines)
    near = sharpened(cosines, kernel.scale, scale, _SHARPNESS)
    root = roots(near.sum(axis=0))  # the kernel is symmetric, so a new item's row sums to what its column does
    level = (kernel.row_root * reciprocal(kernel.column_root)).max(initial=0.0)
    joined = [(kernel.vectors, fresh), (kernel.scale, scale), (kernel.row_root, level * root)]
    joined.append((kernel.column_root, root))

    return near, Kernel(*(np.concatenate(pair).astype(np.float32) for pair in joined))


def _cut(matrix: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """The 2 x `neighbours` largest of each column, without the diagonal of a square matrix."""
    square = matrix.shape[0] == matrix.shape[1]
    whole = sparse.csr_array(matrix)
    return keep_largest(without_diagonal(whole) if square else whole, 2 * neighbours)


def _none(height: int, width: int) -> sparse.csr_array:
    return sparse.csr_array((height, width), dtype=np.float32)


def _bordered(old: sparse.csr_array, row: sparse.csr_array, column: sparse.csr_array) -> sparse.csr_array:
    """[[old, column], [row, 0]]."""
    return sparse.csr_array(sparse.block_array([[old, column], [row, None]], format="csr"), dtype=np.float32)


def _whitening(vectors: Float) -> Float:
    """(dim, dim) root R of the ridge inverse of the vectors' second moments; rows of vectors @ R have mean length 1.

    Directions that many items share say little about a taste and count less: what `RidgeProfiles` does, without its
    step per user.
    """
    metric = unobserved_metric(vectors, 1.0, _UNOBSERVED)
    root = np.linalg.cholesky(metric.astype(np.float64)).astype(np.float32)
    size = np.square(vectors @ root).sum(axis=1)
    return np.asarray(root / np.sqrt(size[size > 0].mean()) if size.any() else root, np.float32)
