"""What turns a state into an answer."""

from jaxtyping import Float
from torch import Tensor, nn


class PooledLinear(nn.Module):
    """Mean over the spatial dimensions, then one linear layer: (n, channels, h, ...) -> (n, classes) logits.

    A head must hold no BatchNorm: batch statistics mix the samples of a batch, and then neither a gradient
    weighted per sample nor an answer that does not depend on who else is in the batch would exist.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: Float[Tensor, "n channels ..."]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(state.mean(tuple(range(2, state.dim()))))
        return logits
