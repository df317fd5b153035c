"""Vectors, relations and topics made so that a map on vectors has something to find."""

import numpy as np

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.numerics.vectors import unit_rows


def planted(items=240, topics=6, users=150, dim=20, seed=0, noise=3.0):
    """Vectors with a topic drowned in louder directions, a log in which users keep to a topic, and the topics."""
    draw = np.random.default_rng(seed)
    topic = draw.permutation(np.arange(items) % topics)
    told = np.random.default_rng(99).normal(size=(topics, 6))[topic] + 0.4 * draw.normal(size=(items, 6))
    vectors = np.hstack([told, noise * draw.normal(size=(items, dim - 6))]).astype(np.float32)
    pairs = [(u, i) for u in range(users) for i in draw.choice(np.flatnonzero(topic == u % topics), 5, replace=False)]
    return Embeddings(IdMap(range(items)), vectors), log(pairs, users, items), topic


def log(pairs, users, items):
    user, item = np.array(pairs, np.int64).reshape(-1, 2).T
    return Interactions(IdMap(range(users)), IdMap(range(items)), user, item, np.ones(len(user), np.float32))


def agreement(items, topic, rows=None):
    """Share of items whose nearest other, by cosine, is of their topic."""
    rows = np.arange(len(topic)) if rows is None else rows
    vectors = unit_rows(items.vectors[rows])
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return float((topic[rows][near.argmax(axis=1)] == topic[rows]).mean())
