"""Work runs on as many threads as pay for it, tried on the work itself; what the user has set wins."""

from collections.abc import Callable, Iterator

import pytest
import threadpoolctl
import torch
from torch import Tensor

from optdepth import threads
from optdepth.errors import InputError
from optdepth.threads import ThreadChoice, chosen, light, on_threads, own, paying

ROWS = torch.zeros(64, 1)


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of eight cores on which the user has set nothing."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_all", lambda: frozenset({8}))
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    assert torch.get_num_threads() == 8  # whatever a test did, the threads are as they were
    torch.set_num_threads(before)


class Machine:
    """Work that takes `seconds(threads)` a sample on a clock of its own; nothing is computed."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.time = seconds, 0.0
        self.ran: list[tuple[int, int]] = []
        """Threads and samples of every run."""

    def clock(self) -> float:
        return self.time

    def __call__(self, inputs: Tensor) -> None:
        self.ran.append((torch.get_num_threads(), len(inputs)))
        self.time += len(inputs) * self.seconds(torch.get_num_threads())

    def paying(self, rows: int = 64, most: int = 8) -> int:
        return paying(torch.zeros(rows, 1), self, most, self.clock)


def amdahl(share: float, second: float = 1e-3) -> Callable[[int], float]:
    """Time of a sample of which this share can be divided among threads."""
    return lambda count: second * (1 - share + share / count)


@pytest.mark.parametrize(
    ("share", "most", "count"),
    [
        (0.0, 8, 1),
        (0.5, 8, 1),
        (0.79, 8, 1),  # a little less than four fifths of what two threads could save
        (0.81, 2, 2),
        (0.9, 8, 4),
        (1.0, 8, 8),
        (1.0, 6, 6),
        (1.0, 1, 1),
    ],
)
def test_the_number_doubles_as_long_as_that_is_clearly_faster(share: float, most: int, count: int) -> None:
    assert Machine(amdahl(share)).paying(most=most) == count


def test_threads_that_wait_for_a_core_are_given_up_at_once() -> None:
    machine = Machine(lambda count: 1e-3 if count == 1 else 0.02)
    assert machine.paying() == 1
    assert [count for count, _ in machine.ran if count > 1] == [2]


@pytest.mark.parametrize("slow", range(2, 12))
def test_one_slow_moment_decides_nothing(slow: int) -> None:
    """Two threads halve the time, and one run of either is slowed by a half and more."""
    machine = Machine(amdahl(1.0))
    even = machine.seconds
    machine.seconds = lambda count: even(count) * (1.9 if len(machine.ran) == slow else 1.0)
    assert machine.paying(most=2) == 2


@pytest.mark.parametrize("second", [1e-6, 1e-4, 1e-2, 1.0, 60.0])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_trial_is_short(second: float, share: float) -> None:
    """Two seconds for eight threads at the most, or a few runs of two samples where those take longer."""
    machine = Machine(amdahl(share, second))
    machine.paying(rows=1000)
    assert machine.time <= max(2.0, 10 * 2 * second)
    assert max(rows for _, rows in machine.ran) <= max(2, 0.11 / second)


def test_a_single_sample_can_be_tried() -> None:
    machine = Machine(amdahl(1.0))
    assert machine.paying(rows=1, most=2) == 2
    assert {rows for _, rows in machine.ran} == {1}


def test_a_kind_of_work_is_tried_once() -> None:
    machine = Machine(amdahl(0.9))
    choice = ThreadChoice(machine.clock)
    for kind in ("small", "large"):
        before = len(machine.ran)
        with choice.running(kind, ROWS, machine) as count:
            assert count == torch.get_num_threads() == 4
        tried = len(machine.ran)
        assert tried > before
        with choice.running(kind, ROWS, machine) as count:
            assert count == torch.get_num_threads() == 4
        assert len(machine.ran) == tried


def test_without_time_for_a_trial_it_is_one_thread_until_there_was() -> None:
    machine = Machine(amdahl(1.0))
    choice = ThreadChoice(machine.clock)
    for work, expected in ((None, 1), (machine, 8), (None, 8)):
        with choice.running("work", ROWS, work) as count:
            assert count == torch.get_num_threads() == expected


def test_on_an_accelerator_nothing_is_chosen() -> None:
    machine = Machine(amdahl(0.0))
    with ThreadChoice(machine.clock).running("work", ROWS.to("meta"), machine) as count:
        assert count == torch.get_num_threads() == 8
    assert not machine.ran


def counted() -> int:
    """The threads that work is run on, with a trial that would find one."""
    machine = Machine(amdahl(0.0))
    with ThreadChoice(machine.clock).running("work", ROWS, machine):
        assert not machine.ran, "tried against the user's own number"
        return torch.get_num_threads()


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "8")
    assert own() == counted() == light(torch.get_num_threads)() == 8


def test_torch_set_num_threads_wins_unless_it_is_all_there_are() -> None:
    assert own() is None
    torch.set_num_threads(5)
    try:
        assert own() == counted() == light(torch.get_num_threads)() == 5
        with chosen(3):
            assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(8)


def test_on_threads_wins_for_a_block() -> None:
    for count in (1, 3, 8):
        with on_threads(count):
            assert own() == counted() == light(torch.get_num_threads)() == count
            with on_threads(2):
                assert own() == counted() == 2
    assert own() is None
    with pytest.raises(InputError, match="give at least 1"), on_threads(0):
        pass


def test_within_work_that_was_tried_nothing_is_tried_again() -> None:
    with chosen(4) as outer:
        assert outer == counted() == 4
        with chosen(2) as inner:
            assert inner == torch.get_num_threads() == 4
        assert light(torch.get_num_threads)() == 1  # known, whatever pays for the work around
        assert torch.get_num_threads() == 4
    assert own() is None


def test_light_work_runs_on_one_thread_of_torch_and_of_the_blas() -> None:
    def blas() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    @light
    def work(first: int, *, second: int) -> tuple[int, list[int], int]:
        """Doubles."""
        return torch.get_num_threads(), blas(), first + second

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas()
        found, inside, total = work(1, second=2)
        assert (found, total, set(inside)) == (1, 3, {1})
        assert blas() == before
    assert (work.__name__, work.__doc__) == ("work", "Doubles.")


@pytest.mark.parametrize("block", [on_threads, chosen])
def test_threads_are_restored_when_a_block_fails(block: Callable) -> None:
    with pytest.raises(ValueError, match="on 3"), block(3):
        raise ValueError(f"on {torch.get_num_threads()}")
    assert torch.get_num_threads() == 8
    assert own() is None


def test_threads_are_restored_when_work_or_its_trial_fails() -> None:
    def fails(inputs: object = None) -> None:
        raise ValueError(f"on {torch.get_num_threads()}")

    for work in (fails, Machine(amdahl(0.0))):
        with pytest.raises(ValueError, match="on 1"), ThreadChoice().running("work", ROWS, work):
            fails()
        assert torch.get_num_threads() == 8
        assert own() is None
    with pytest.raises(ValueError, match="on 1"):
        light(fails)()
    assert torch.get_num_threads() == 8
    assert own() is None
