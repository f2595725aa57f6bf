"""Neural ODE: x' = f(t, x), answered by one head at any time; a residual network whose steps may be as small as wanted.

As a staged network its exits are times at equal distances, and the stage between two of them is one step of a Runge
and Kutta method from `torchdiffeq`: with "euler" it is the residual block x + h f(t, x). Steps are fixed because an
adaptive step is chosen for a whole batch, and then the answer for a sample would depend on who else is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .modes import in_mode_of
from .shared import SharedModule
from .staged import BUILDERS, Exit, StagedNetwork

Method = Literal["euler", "midpoint", "rk4"]
_MOST = 10_000
"""Intervals that a network may be asked for. They share their weights, so that a file could ask for any number."""
EVALUATIONS: dict[str, int] = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Evaluations of the field in one step of each method."""


def neural_ode(
    intervals: int = 16,
    *,
    classes: int,
    channels: int = 3,
    width: int = 16,
    horizon: float = 1.0,
    method: Method = "rk4",
    exits: Sequence[str] | Literal["all"] = "all",
    seed: int,
) -> StagedNetwork:
    """A neural ODE classifier for small images (Chen et al. 2018, arXiv:1806.07366) with an exit at every grid time.

    Args:
        intervals: between exits, one step of the method each; exits are at horizon x k / intervals, k = 0, 1, ...
        classes: how many logits.
        channels: of the input images, (n, channels, height, width), of any size.
        width: channels of the state.
        horizon: T, the last time.
        method: "euler", "midpoint" or "rk4" (the 3/8 rule), of order 1, 2 and 4.
        exits: "all", or names such as "t=0.5", the last among them.
        seed: of the weights.

    Raises:
        InputError: sizes below 1, more than 10,000 intervals, a horizon that is not positive and finite, an unknown
            method, or torchdiffeq is missing.
    """
    if min(intervals, classes, channels, width) < 1 or intervals > _MOST or not 0 < horizon < math.inf:
        raise InputError(
            f"intervals {intervals}, classes {classes}, channels {channels}, width {width}, horizon {horizon:g}: "
            f"counts must be at least 1, intervals at most {_MOST:,}, the horizon > 0 and finite"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(1, width))
        field = ConvField(width)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes))
    config = {"family": "neural_ode", "classes": classes, "channels": channels, "width": width, "seed": seed}
    network = flow_network(stem, field, head, horizon=horizon, intervals=intervals, method=method, config=config)
    return network if exits == "all" else network.keep(list(exits))


def flow_network(
    stem: nn.Module,
    field: nn.Module,
    head: nn.Module,
    *,
    horizon: float,
    intervals: int,
    method: Method = "rk4",
    config: dict[str, object] | None = None,
) -> StagedNetwork:
    """A neural ODE of your own modules.

    Args:
        stem: inputs (n, ...) -> x(0).
        field: called as field(t, x), t a tensor () and x the states (n, ...); gives x' of the shape of x.
        head: states -> logits (n, classes), the same at all times.
        horizon, intervals, method: as in `neural_ode`.
        config: what rebuilds it, without which it cannot be saved.
    """
    if method not in get_args(Method):
        raise InputError(
            f"method {method!r}: choose from {', '.join(get_args(Method))}; the steps of adaptive methods depend on "
            "the whole batch, so an answer would depend on who else is in it"
        )
    _torchdiffeq()
    ends = [horizon * k / intervals for k in range(intervals + 1)]
    fields = [*[SharedModule(field)] * (intervals - 1), field]
    spans = zip(fields, ends[:-1], ends[1:], strict=True)
    return StagedNetwork(
        stem,
        [nn.Identity(), *(Interval(*span, method) for span in spans)],
        [*[SharedModule(head)] * intervals, head],
        [Exit(f"t={end:.6g}", k) for k, end in enumerate(ends, 1)],
        None if config is None else {**config, "horizon": horizon, "intervals": intervals, "method": method},
    )


def regridded(network: StagedNetwork, intervals: int, *, method: Method) -> StagedNetwork:
    """The same neural ODE, weights shared, on another grid of times; with "euler", the residual network of that step.

    Raises:
        InputError: a network that is no neural ODE.
    """
    pieces = flow_pieces(network)
    horizon = pieces[-1].end
    made = flow_network(
        network.stem,
        unwrapped(pieces[-1].field),
        unwrapped(network.heads[-1]),
        horizon=horizon,
        intervals=intervals,
        method=method,
        config=network.config,
    )
    return in_mode_of(made, network)


def flow_pieces(network: StagedNetwork) -> list[Interval]:
    """The intervals of a neural ODE with an exit at every grid time.

    Raises:
        InputError: a network that is none.
    """
    pieces = [stage for stage in network.stages if isinstance(stage, Interval)]
    if len(pieces) != len(network.exits) - 1:
        raise InputError("the network is no neural ODE with an exit at every grid time: build it with neural_ode")
    return pieces


@final
class Interval(nn.Module):
    """The flow from one time to another by one step: states (n, ...) -> states (n, ...)."""

    def __init__(self, field: nn.Module, begin: float, end: float, method: Method) -> None:
        super().__init__()
        self.field, self.begin, self.end, self.method = field, begin, end, method
        self.evaluations = EVALUATIONS[method]

    def forward(self, state: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        span = state.new_tensor([self.begin, self.end])
        states: Tensor = _torchdiffeq().odeint(self.field, state, span, method=self.method)
        return states[-1]

    def slope(self, state: Float[Tensor, "n ..."], time: float) -> Float[Tensor, "n ..."]:
        """x' at a time: one evaluation of the field."""
        slope: Tensor = self.field(state.new_tensor(time), state)
        return slope

    def extra_repr(self) -> str:
        return f"from {self.begin:g} to {self.end:g} by {self.method}"


@final
class ConvField(nn.Module):
    """f(t, x): two 3x3 convolutions with a norm over each sample, the time as one more channel of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width + 1, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.conv2 = nn.Conv2d(width + 1, width, 3, padding=1)

    def forward(self, time: Float[Tensor, ""], state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        clock = time.to(state.dtype).expand(len(state), 1, *state.shape[2:])
        inner = torch.tanh(self.norm(self.conv1(torch.cat([state, clock], 1))))
        slope: Tensor = self.conv2(torch.cat([inner, clock], 1))
        return slope


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself where it is called from elsewhere."""
    return module.owned_elsewhere if isinstance(module, SharedModule) else module


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError:
        raise InputError("neural ODEs need torchdiffeq: pip install 'optdepth[ode]'") from None
    return torchdiffeq


BUILDERS["neural_ode"] = neural_ode
