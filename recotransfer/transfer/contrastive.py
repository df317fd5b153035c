"""A small network on frozen vectors, trained contrastively."""

from __future__ import annotations

from recotransfer.settings import NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.networks import NetworkTransfer


class ContrastiveHead(NetworkTransfer):
    """A small residual network, trained to give items of the same user high cosines. Output rows have unit length.

    The loss is a softmax over in-batch negatives and as many sampled ones, with logQ correction (Yi et al., 2019).
    Where the relations are labels it is a softmax over classes instead. See `RelationLoss` and `NetworkTransfer` in
    `networks.py`.

    Args:
        dim: output width; None keeps that of the input.
        hidden: width of the hidden layer; 0 makes the map linear.
        temperature: of the softmax over cosines.
        batch_size: pairs, or labelled items, per step.
        learning_rate: of Adam.
        epochs: maximum number of passes over the relations.
        patience: epochs without improvement on held-out items after which training stops.
        seed: random seed.
    """

    def __init__(
        self,
        *,
        dim: PositiveInt | None = None,
        hidden: NonNegativeInt = 256,
        temperature: Positive = 0.1,
        batch_size: PositiveInt = 512,
        learning_rate: Positive = 0.0003,
        epochs: NonNegativeInt = 10,
        patience: PositiveInt = 2,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.hidden = hidden
        self.temperature = temperature
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.patience = patience
        self.seed = seed
