"""A small network on vectors, trained contrastively."""

from __future__ import annotations

from recotransfer.settings import NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.networks import NetworkTransfer


class ContrastiveHead(NetworkTransfer):
    """A small residual network whose cosines tell items taken together from others; rows come out of length 1.

    NetworkTransfer by a softmax over in-batch and as many sampled negatives with the logQ correction (Yi et al., 2019),
    which labels turn into one over classes; see `RelationLoss` and `NetworkTransfer` in `networks.py`.

    Args:
        dim: width of what comes out; None is that of the vectors.
        hidden: width of the hidden layer; 0 makes the map linear.
        temperature: of the softmax over cosines.
        batch_size: pairs per step.
        learning_rate: of Adam.
        epochs: sweeps over the relations, at most.
        patience: sweeps without gain on held-out items after which training ends.
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
