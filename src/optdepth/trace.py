"""Trace: what N inputs met at K exits. Enough to solve, tune, certify and draw without the network."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real

from .batch import identities
from .errors import InputError
from .exit_costs import Costs
from .features import Answers, observe
from .files import damaged, rebuilding
from .recall import Windows, checked, every_answer
from .rewards import discounted, seen_among
from .samples import Samples
from .tensor_files import read_tensors, write_tensors
from .threads import light

Array = np.ndarray
_FORMAT, _VERSION = "optdepth.trace", 4


@dataclass(frozen=True, eq=False)
class Trace:
    """What N inputs met at K exits.

    Where `costs` have a horizon, nothing is met behind a sample's last exit: what arrays hold there is not read, and
    what was met at that exit takes its place. So its end cannot be seen before it is reached; what is known of it from
    the start, such as a length, can be a feature.

    Attributes:
        losses: (N, K) loss of the answer given at each exit, any bounded task loss; a reward is a negative loss.
        observations: (N, K, F) what may be seen at each exit without the label.
        costs: what each exit costs, the same for all samples or (N, K), and where samples end by themselves.
        features: F names of the observation's columns.
        posterior_losses: (N, K) loss that the last exit's class distribution expects of each exit's answer. The
            realised loss without the label's noise (theory, section 10): solvers fit on it, never report on it.
        source: names the data set that the samples come from, all its splits; see `samples.Samples`.
        rows: (N,) number of each sample in its source; without a source it means nothing to other traces.
        identity: (N,) hash of each sample's own content, by which traces know a sample again: of its inputs where a
            network was recorded; else, if not given, of its losses and observations, or of its answers. Give numbers
            of your own, each to one sample in all your traces, where different samples may look alike, as draws from
            few states do.
        network: fingerprint of the network recorded, empty when there is none.
        recall: which exits' answers the losses are of, where an exit does not answer by itself; see `optdepth.recall`.
        reward: the feature that is the reward, where `from_rewards` found that one is and that no reward is negative:
            where it is 0 stopping earns nothing, and going on cannot earn less.
        disagreement: (N, K) whether the answer at each exit is another than at the last; None where nobody can say.

    Example:
        >>> logits, classes = np.random.default_rng(0).normal(size=(100, 2, 3)), np.arange(100) % 3
        >>> trace = od.Trace.from_logits(logits, classes, od.Costs.of([0.5, 1.0]))
        >>> trace.n_exits, trace.features
        (2, ('confidence', 'margin', 'entropy', 'streak', 'divergence'))
    """

    losses: Real[Array, "N K"]
    observations: Real[Array, "N K F"]
    costs: Costs
    features: tuple[str, ...] = ()
    posterior_losses: Float[Array, "N K"] | None = None
    source: str = ""
    rows: Int[Array, " N"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    identity: Int[Array, " N"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    network: str = ""
    recall: Windows = ()
    reward: str = ""
    disagreement: Bool[Array, "N K"] | None = None

    def __post_init__(self) -> None:
        losses = np.asarray(self.losses, dtype=np.float64)
        observations = np.asarray(self.observations, dtype=np.float32)
        _check_shapes(losses, observations, self.costs)
        losses, observations = self.costs.until_end(losses), self.costs.until_end(observations)
        _check_finite("loss", losses)
        _check_finite("observation", observations)
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - frozen dataclass
        put("losses", losses)
        put("observations", observations)
        put("recall", checked(self.recall, losses.shape[1]))
        put("features", tuple(self.features) or tuple(f"x{f}" for f in range(observations.shape[2])))
        if len(self.features) != observations.shape[2]:
            raise InputError(f"{len(self.features)} feature names for {observations.shape[2]} observation columns")
        if self.posterior_losses is not None:
            posterior = np.asarray(self.posterior_losses, dtype=np.float64)
            if posterior.shape != losses.shape:
                raise InputError(f"posterior_losses has shape {posterior.shape}, losses {losses.shape}")
            posterior = self.costs.until_end(posterior)
            _check_finite("posterior loss", posterior)
            put("posterior_losses", posterior)
        if self.disagreement is not None:
            put("disagreement", _checked_disagreement(self.disagreement, self.costs, losses.shape))
        given = self.identity if len(self.identity) else identities((_tensor(losses), _tensor(observations)))
        put("identity", np.asarray(given, dtype=np.int64))
        put("rows", np.asarray(self.rows, dtype=np.int64) if len(self.rows) else np.arange(len(losses)))
        for name in ("rows", "identity"):
            if getattr(self, name).shape != (len(losses),):
                raise InputError(f"{name} has shape {getattr(self, name).shape} for {len(losses)} samples")
        put("source", self.source or f"recording {_digest(self.identity, self.rows)}")

    @classmethod
    @light
    def from_logits(
        cls,
        logits: Float[Any, "N K C"],
        labels: Int[Any, " N"],
        costs: Costs,
        *,
        of_state: Mapping[str, Float[Any, "N K"]] | None = None,
        recall: Windows = (),
        **where: Any,
    ) -> Self:
        """A trace of 0-1 losses from the logits of every exit.

        Args:
            logits: of every exit, on every sample.
            labels: the right class of each sample, 0..C-1.
            of_state: features of the network's state by name, as seen when it ran, such as "residual".
            recall: which exits answer at each exit, as `best_recall` chooses it on the fit split; each its own
                if empty.
            where: `source`, `rows`, `identity` and `network` of the trace.
        """
        scores, right = torch.as_tensor(logits), torch.as_tensor(labels)
        if scores.ndim != 3 or right.shape != scores.shape[:1]:
            raise InputError(
                f"logits must be (N, K, C) and labels (N,); got {tuple(scores.shape)}, {tuple(right.shape)}"
            )
        scores = torch.from_numpy(costs.until_end(scores.numpy()))
        _check_finite("logit", scores.numpy())
        outside = torch.nonzero((right < 0) | (right >= scores.shape[2]))
        if len(outside):
            i = int(outside[0])
            raise InputError(f"label {int(right[i])} of sample {i} is outside 0..{scores.shape[2] - 1}")
        answers = torch.from_numpy(costs.until_end(every_answer(scores, recall).argmax(-1).numpy()))
        posterior = scores[:, -1].double().softmax(-1)
        wrong, expected = (answers != right[:, None]).double(), 1.0 - posterior.gather(1, answers)
        where |= {"recall": recall, "disagreement": (answers != answers[:, -1:]).numpy()}
        made = cls.from_answers(scores, wrong, costs, kind="classes", of_state=of_state, **where)
        return replace(made, posterior_losses=expected.numpy())

    @classmethod
    @light
    def from_answers(
        cls,
        answers: Float[Any, "N K ..."],
        losses: Float[Any, "N K"],
        costs: Costs,
        *,
        kind: Answers,
        of_state: Mapping[str, Float[Any, "N K"]] | None = None,
        **where: Any,
    ) -> Self:
        """A trace of any loss, from the answers of every exit.

        Args:
            answers: of every exit, on every sample: (N, K) or (N, K, d) numbers, (N, K, C) logits, or (N, K, t, C)
                logits of t tokens, all zero where a token is padding.
            losses: of those answers.
            kind: "numbers" or "classes": every feature of that kind is observed of them, see `optdepth.features`.
            of_state, where: as in `from_logits`.
        """
        given = torch.as_tensor(answers)
        if kind not in get_args(Answers):
            raise InputError(f"answers are {' or '.join(get_args(Answers))}, not {kind!r}")
        if given.ndim < 2 or given.shape[:2] != np.shape(losses):
            shapes = f"{tuple(given.shape)}, {np.shape(losses)}"
            raise InputError(f"answers must be (N, K, ...) and losses (N, K); got {shapes}")
        given = torch.from_numpy(costs.until_end(given.numpy()))
        _check_finite("answer", given.flatten(2).numpy() if given.ndim > 2 else given.numpy())
        seen, features = observe(given, kind, of_state)
        if "identity" not in where:  # of the answers alone: the same samples under another loss are the same samples
            where["identity"] = identities(given)
        if kind == "classes" and given.ndim == 3 and "disagreement" not in where:
            where["disagreement"] = (given.argmax(-1) != given[:, -1:].argmax(-1)).numpy()
        return cls(np.asarray(losses), seen.numpy(), costs, features, **where)

    @classmethod
    def from_rewards(
        cls,
        rewards: Real[Any, "N K"],
        observations: Real[Any, "N K F"],
        costs: Costs | None = None,
        *,
        discount: float | Sequence[float] | Float[Array, " K"] = 1.0,
        **rest: Any,
    ) -> Self:
        """A trace of rewards to be made large: its losses are the rewards, discounted, with the other sign.

        Args:
            rewards: of stopping at each exit.
            observations: what may be seen there. If one of them is the reward, in any unit, and no reward is negative,
                solved rules go on where it is 0 and going on is free, and are fitted on the other samples alone.
            costs: of the exits; none when not given, and then the price to solve at is 0.
            discount: what a reward keeps of its worth from one exit to the next, in (0, 1]; or (K,) what it keeps until
                each exit.
            rest: `features`, `source`, `rows` and `identity` of the trace.
        """
        gained = np.asarray(rewards, dtype=np.float64)
        if gained.ndim != 2:
            raise InputError(f"rewards must be (N, K); got shape {gained.shape}")
        exits = costs if costs is not None else Costs.of(np.zeros(gained.shape[1]))
        made = cls(-discounted(gained, discount), np.asarray(observations, dtype=np.float32), exits, **rest)
        return replace(made, reward=seen_among(exits.until_end(gained), made.observations, made.features))

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def n_exits(self) -> int:
        """K, the number of exits."""
        return int(self.losses.shape[1])

    @property
    def ended(self) -> Bool[Array, "N D"]:
        """At which exits before the last each sample has ended by itself: there it stops whatever is seen."""
        if self.costs.horizon is None:
            return np.zeros((len(self), self.n_exits - 1), dtype=bool)
        return np.arange(self.n_exits - 1) >= self.costs.horizon[:, None] - 1

    @property
    def samples(self) -> Samples:
        """Which samples these are."""
        return Samples(self.source, self.rows, self.identity)

    def columns(self, features: Sequence[str]) -> Float[Array, "N K f"]:
        """The observations of the features named, in that order."""
        missing = [name for name in features if name not in self.features]
        if missing:
            raise InputError(f"the trace has no feature {missing[0]!r}; it has {', '.join(self.features)}")
        if tuple(features) == self.features:
            return self.observations
        return self.observations[:, :, [self.features.index(name) for name in features]]

    def select(self, index: Int[Array, " n"] | Bool[Array, " N"]) -> Trace:
        """The samples at the positions (or under the mask) given."""
        kept = self.losses[index]
        if len(kept) == 0:
            raise InputError("an empty selection is no trace")
        posterior = None if self.posterior_losses is None else self.posterior_losses[index]
        differs = None if self.disagreement is None else self.disagreement[index]
        return replace(
            self,
            losses=kept,
            observations=self.observations[index],
            costs=self.costs.select(index),
            posterior_losses=posterior,
            rows=self.rows[index],
            identity=self.identity[index],
            disagreement=differs,
        )

    def split(self, *shares: float, seed: int) -> list[Trace]:
        """Disjoint random parts, one a share; shares are positive and sum to at most 1."""
        if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise InputError(f"shares {shares} must be positive and sum to at most 1")
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.round(np.cumsum([0.0, *shares]) * len(self)).astype(int)
        return [self.select(order[a:b]) for a, b in itertools.pairwise(ends)]

    def overlap(self, other: Trace) -> int:
        """How many samples both traces hold; what makes two samples the same is said in `samples.Samples`."""
        return self.samples.overlap(other.samples)

    @staticmethod
    def concat(traces: Sequence[Trace]) -> Trace:
        """One trace of the samples of several, recorded from the same source, network and exits."""
        first = traces[0]
        for other in traces[1:]:
            shared = ("source", "network", "features", "recall", "reward")
            same = all(getattr(other, name) == getattr(first, name) for name in shared)
            if not same:
                raise InputError(f"traces to concatenate must share {', '.join(shared)}")
        costs, rows = Costs.concat([t.costs for t in traces]), np.concatenate([t.rows for t in traces])
        if twice := len(rows) - len(np.unique(rows)):
            raise InputError(f"{twice} samples are in more than one of the traces; each may count once")
        posteriors = [t.posterior_losses for t in traces if t.posterior_losses is not None]
        differing = [t.disagreement for t in traces if t.disagreement is not None]
        return replace(
            first,
            losses=np.concatenate([t.losses for t in traces]),
            observations=np.concatenate([t.observations for t in traces]),
            costs=costs,
            posterior_losses=np.concatenate(posteriors) if len(posteriors) == len(traces) else None,
            rows=rows,
            identity=np.concatenate([t.identity for t in traces]),
            disagreement=np.concatenate(differing) if len(differing) == len(traces) else None,
        )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {"losses": self.losses, "observations": self.observations, "rows": self.rows}
        tensors["identity"] = self.identity
        tensors |= {"reach": self.costs.reach, "look": self.costs.look, "answer": self.costs.answer}
        optional = {"posterior_losses": self.posterior_losses, "disagreement": self.disagreement}
        optional |= {"horizon": self.costs.horizon}
        tensors |= {name: value for name, value in optional.items() if value is not None}
        about = {"format": _FORMAT, "version": _VERSION, "features": self.features, "unit": self.costs.unit}
        about |= {"source": self.source, "network": self.network, "recall": self.recall}
        about |= {"reward": self.reward}
        write_tensors(Path(path), {name: torch.as_tensor(value) for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; anything else is refused."""
        path, again = Path(path), "record the trace again"
        held, about = read_tensors(path, format=_FORMAT, version=_VERSION, make_it=again)
        arrays = {name: held.take(name, torch.float64, 1, 2) for name in ("reach", "look", "answer")}
        horizon = held.optional("horizon", torch.int64, 1)
        parts = {
            "losses": held.take("losses", torch.float64, 2),
            "observations": held.take("observations", torch.float32, 3),
            "features": about.take("features", tuple[str, ...]),
            "posterior_losses": held.optional("posterior_losses", torch.float64, 2),
            "rows": held.take("rows", torch.int64, 1),
            "identity": held.take("identity", torch.int64, 1),
            "recall": about.take("recall", Windows),
            "disagreement": held.optional("disagreement", torch.bool, 2),
            **{name: about.take(name, str) for name in ("source", "network", "reward")},
        }
        if not len(parts["rows"]) == len(parts["identity"]) == len(parts["losses"]):
            sizes = ", ".join(f"{len(parts[name])} {name}" for name in ("losses", "rows", "identity"))
            raise damaged(path, ValueError(f"it holds {sizes}: one each a sample"), again)
        with rebuilding(path, again):
            return cls(costs=Costs(**arrays, unit=about.take("unit", str), horizon=horizon), **parts)


def _check_shapes(losses: Array, observations: Array, costs: Costs) -> None:
    if losses.ndim != 2 or len(losses) == 0:
        raise InputError(f"losses must be (N, K) with N >= 1; got shape {losses.shape}")
    if losses.shape[1] < 2:
        raise InputError(f"a trace needs at least two exits to choose between; got {losses.shape[1]}")
    if observations.ndim != 3 or observations.shape[:2] != losses.shape or observations.shape[2] == 0:
        raise InputError(
            f"observations must be (N, K, F) with (N, K) = {losses.shape} and F >= 1; got shape {observations.shape}"
        )
    if len(costs) != losses.shape[1]:
        raise InputError(f"costs of {len(costs)} exits for losses at {losses.shape[1]} exits")
    if costs.samples not in (None, len(losses)):
        raise InputError(f"costs of {costs.samples} samples for losses of {len(losses)}: give each its own, or (K,)")


def _checked_disagreement(given: Any, costs: Costs, shape: tuple[int, ...]) -> Bool[Array, "N K"]:
    differs = np.asarray(given)
    differs = costs.until_end(differs) if differs.shape == shape else differs
    if differs.shape != shape or not np.isin(differs, (0, 1)).all() or differs[:, -1].any():
        raise InputError(
            f"disagreement is true or false of {shape[0]} samples at {shape[1]} exits, and false at the last; "
            f"got shape {differs.shape}, values {', '.join(map(str, np.unique(differs)[:3]))}"
        )
    return differs.astype(bool)


def _check_finite(what: str, values: Array) -> None:
    if np.isfinite(values.sum(dtype=np.float64)):  # one cheap pass in the usual case
        return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InputError(f"{what} of sample {where[0]} at exit {where[1]} is {values[where]}; it must be finite")


def _digest(*arrays: Array) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
