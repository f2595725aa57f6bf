"""What a look at an exit sees, of a batch or of one sample; what several features compute of it is computed once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..batch import State
from ..errors import InputError


class View:
    """A batch at one exit, in tensors.

    Tokens whose logits are all zero are padding: no trained head gives a real token exactly that, and a head marks
    padding so by `logits * mask[..., None]`.

    Args:
        answer: (n, ...) of the exit's head, of any precision.
        before, state: of the network before the last stage and behind it; None where there is no network.

    Attributes:
        answer: in float32.
        logits: the same of classes: (n, C), or (n, t, C) where a sample has tokens, however they are arranged.
    """

    def __init__(self, answer: Float[Tensor, "n ..."], before: State | None = None, state: State | None = None) -> None:
        self.answer = answer if answer.dtype is torch.float32 else answer.float()
        self.logits = self.answer if answer.ndim < 3 else self.answer.flatten(1, -2)
        self._before, self._state = before, state
        # Computed when first asked for. `functools.cached_property` holds a lock, which no graph takes.
        self._real: Tensor | None = None
        self._probabilities: Tensor | None = None
        self._top: tuple[Tensor, Tensor] | None = None
        self._best: Tensor | None = None
        self._prediction: Tensor | None = None

    @property
    def states(self) -> tuple[State, State]:
        """Of the network, before the last stage and behind it.

        Raises:
            InputError: there is none here.
        """
        if self._before is None or self._state is None:
            raise InputError("here are answers without the network's states, which a feature of the state is of")
        return self._before, self._state

    @property
    def real(self) -> Bool[Tensor, "n t"]:
        """Which tokens are no padding."""
        if self._real is None:
            self._real = (self.logits != 0).any(-1)
        return self._real

    @property
    def probabilities(self) -> Float[Tensor, "n ... C"]:
        """Of the classes."""
        if self._probabilities is None:
            self._probabilities = self.logits.softmax(-1)
        return self._probabilities

    @property
    def top(self) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
        """The highest probability and the next."""
        if self._top is None:
            first, second = self.probabilities.topk(2, dim=-1).values.unbind(-1)
            self._top = first, second
        return self._top

    @property
    def best(self) -> Float[Tensor, "n ..."]:
        """The highest probability."""
        if self._best is None:
            self._best = self.probabilities.amax(-1) if self._top is None else self._top[0]
        return self._best

    @property
    def prediction(self) -> Int[Tensor, "n ..."]:
        """The most likely class."""
        if self._prediction is None:
            self._prediction = self.logits.argmax(-1)
        return self._prediction

    @property
    def numbers(self) -> Float[Tensor, "n d"]:
        """An answer that is no logits, as one row a sample."""
        return self.answer.reshape(len(self.answer), -1)


class ViewOfOne:
    """A single sample at one exit, in Python numbers: the same under the same names, of one row of logits or numbers.

    Args:
        answer: (1, C) of the exit's head, of any precision.
    """

    def __init__(self, answer: Float[Tensor, "1 C"]) -> None:
        self.answer = answer if answer.dtype is torch.float32 else answer.float()
        self._numbers: list[float] | None = None
        self._probabilities: list[float] | None = None
        self._prediction: int | None = None

    @property
    def numbers(self) -> list[float]:
        """The answer as it is."""
        if self._numbers is None:
            self._numbers = self.answer.tolist()[0]
        return self._numbers

    @property
    def probabilities(self) -> list[float]:
        """Of the classes, as tensors would have them."""
        if self._probabilities is None:
            self._probabilities = self.answer.softmax(-1).tolist()[0]
        return self._probabilities

    @property
    def best(self) -> float:
        """The highest probability."""
        return max(self.probabilities)

    @property
    def prediction(self) -> int:
        """The most likely class; the first of several, as in tensors."""
        if self._prediction is None:
            self._prediction = self.numbers.index(max(self.numbers))
        return self._prediction
