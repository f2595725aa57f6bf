"""What a signal handler raises reaches whoever set it, and is not taken for an error of what it interrupts."""

import functools
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.inference.stream import stream
from optdepth.interrupts import interrupts
from optdepth.networks import Exit, StagedNetwork
from optdepth.stopping.rule import FixedDepth, Origin

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no SIGALRM")


class Late(Exception):
    """A time limit of one's own."""


def _raise(error: type[Exception], *_: object) -> None:
    raise error("time is up")


class _Handler:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __call__(self, number: int, frame: object) -> None:
        raise self.error("time is up")

    def method(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a handler may take itself back
        raise self.error("time is up")

    def any(self, *given: object) -> None:
        _raise(self.error)


HANDLERS: dict[str, Callable[[type[Exception]], Callable]] = {
    "function": lambda error: lambda number, frame: _raise(error),
    "partial": lambda error: functools.partial(_raise, error),
    "object": _Handler,
    "method": lambda error: _Handler(error).method,
    "any arguments": lambda error: _Handler(error).any,
}


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable], None]]:
    before = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Ringing(nn.Module):
    """Raises the signal while it is run, the time that it is told to; may take what comes for its own error."""

    def __init__(self, wraps: bool = False) -> None:
        super().__init__()
        self.linear, self.wraps, self.left = nn.Linear(4, 4), wraps, [2]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        try:
            if self.left[0] == 0:
                signal.raise_signal(signal.SIGALRM)
        except Exception as error:
            if not self.wraps:
                raise
            raise ValueError("it failed") from error
        return self.linear(x)


def engine(stage: nn.Module) -> od.Engine:
    network = StagedNetwork(nn.Identity(), [stage], [nn.Linear(4, 3)], [Exit("a", 1)])
    return od.Engine(network, FixedDepth(Origin(od.Costs.of([1.0])), 0))


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("error", [TimeoutError, RuntimeError, ValueError, Late])
def test_a_stream_raises_what_a_handler_raises(alarm, kind: str, error: type[Exception]) -> None:
    for batch in (1, 8):
        alarm(HANDLERS[kind](error))
        with pytest.raises(error, match="time is up") as caught:
            list(stream(engine(Ringing()), torch.randn(32, 4), batch=batch))
        assert interrupts(caught.value)


def test_one_that_a_network_took_for_its_own_is_not_named_as_a_sample_s(alarm) -> None:
    alarm(HANDLERS["function"](TimeoutError))
    with pytest.raises(ValueError, match=r"^it failed$"):
        list(stream(engine(Ringing(wraps=True)), torch.randn(32, 4), batch=8))
    alarm(HANDLERS["function"](RuntimeError))
    ringing = engine(Ringing())
    with pytest.raises(RuntimeError, match=r"^time is up$"):
        [ringing(torch.randn(2, 4)) for _ in range(2)]


def test_a_time_limit_ends_an_endless_stream(alarm) -> None:
    """A real clock that strikes again: twenty of twenty. What is raised in the callback of a weak reference, or where C
    code takes an error for "there is no such thing", Python drops; once in some hundreds the first strike falls there.
    """

    def samples() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(4)

    def served() -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 1.0)
        return any(answer.error for answer in stream(serving, samples(), batch=8))

    serving = engine(nn.Linear(4, 4))
    for _ in range(20):
        alarm(HANDLERS["function"](TimeoutError))
        with unchecked(), pytest.raises(TimeoutError, match="time is up"):  # within the checker it says a type is wrong
            served()
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_errors_of_other_kinds_are_still_named() -> None:
    def frames(number: int, other: object) -> None:
        raise ValueError("no handler")

    with pytest.raises(ValueError, match="no handler") as caught:
        frames(14, None)
    assert not interrupts(caught.value)
    answers = list(stream(engine(nn.Linear(4, 4)), [torch.randn(4), torch.randn(5), torch.randn(4)], batch=2))
    assert sorted(bool(answer.error) for answer in answers) == [False, False, True]


class Slow(nn.Module):
    """A residual network during whose calls a time limit ends, from one of them on."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last, self.calls = last, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.last:
            signal.raise_signal(signal.SIGALRM)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_time_limit_ends_staging_wherever_it_comes() -> None:
    """In whichever call of the model: in a run of its own, or while it is traced."""
    before = signal.signal(signal.SIGALRM, HANDLERS["function"](Late))
    try:
        calls = 0
        while True:
            model = Slow(calls)
            try:
                od.stage(model, example=torch.randn(4, 4), exits="all", head="linear")
            except Late:
                calls += 1
                continue
            break
    finally:
        signal.signal(signal.SIGALRM, before)
    assert calls == model.calls > 2
