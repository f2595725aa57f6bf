"""Fixtures that several test files share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits

os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # as the command line does where stderr is no terminal
os.environ["HF_HUB_OFFLINE"] = "1"  # a test never asks a server

install_import_hook("optdepth", "checker.checked")

from checker import unchecked  # noqa: E402
from optdepth.exit_costs import Costs  # noqa: E402 - what is imported from here on is checked
from optdepth.trace import Trace  # noqa: E402 - what is imported from here on is checked
from settings import Setting  # noqa: E402


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The seed of the order: pytest-randomly says it in the header, which -q leaves out."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"the order of the tests is that of --randomly-seed={seed}")


if "OMP_NUM_THREADS" not in os.environ:  # tests are small work; and a trial of threads would run what they count
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))  # of libraries that read it before it was set


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws from torch's global generator, such as weights of its own modules, is the same in any order."""
    torch.manual_seed(0)


@pytest.fixture
def repeated() -> Iterator[None]:
    """For tests that do hundreds of times what others do once: checking annotations takes as long as all the rest."""
    with unchecked():
        yield


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """The folder of a data set that lies beside the repository; skips where it does not."""

    def folder(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"no data at {SHARED / name}")
        return SHARED / name

    return folder


def noisy_logits(samples: int, exits: int = 8, classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K, C) of a made-up network whose evidence grows with depth, and labels (N,).

    Every sample has a difficulty; the right class' score grows with depth from a point that the difficulty sets, over
    noise that neighbouring exits share.
    """
    random = np.random.default_rng(seed)
    difficulty, labels = random.normal(0, 2, samples), random.integers(0, classes, samples)
    logits = np.zeros((samples, exits, classes))
    noise = random.normal(0, 1, (samples, classes))
    for k in range(exits):
        noise = 0.8 * noise + 0.6 * random.normal(0, 1, (samples, classes))
        logits[:, k] = noise
        logits[np.arange(samples), k, labels] += np.clip((k + 1) / exits * 6 - difficulty, 0, 8)
    return torch.from_numpy(logits), torch.from_numpy(labels)


def noisy_trace(samples: int, exits: int = 8, seed: int = 0) -> Trace:
    """A trace of `noisy_logits`, every stage at the same cost, the whole depth at 1, looking at 0.2%."""
    logits, labels = noisy_logits(samples, exits, seed=seed)
    return Trace.from_logits(logits, labels, Costs.of(np.arange(1, exits + 1) / exits, 0.002))


@pytest.fixture(scope="session")
def setting() -> Setting:
    """A network and rules whose answers are forced; nothing of it may be changed."""
    return Setting()


@pytest.fixture(scope="session")
def splits() -> tuple[Trace, Trace]:
    """A fit and a test split of one made-up trace, 4,000 samples each."""
    fit, test = noisy_trace(8_000).split(0.5, 0.5, seed=0)
    return fit, test
