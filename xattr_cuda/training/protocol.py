"""The paper's protocol for tables: train one split, choose the epoch by validation, repeat over random splits.

Hesse et al. 2021, section 4.3: Adam, full batches, the penalty strength * prior(attribution) added to the binary cross
entropy, the epoch with the best validation ROC-AUC kept.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import extras, models, priors
from .distributed import Processes, Talk
from .errors import UserError
from .loop import fit, update
from .methods import METHODS, integrated_gradients
from .runs import Runs
from .signals import StopRequests, announced
from .tabular import Split
from .timing import interleaved, medians

PRIORS: dict[str, Callable[[Tensor], Tensor]] = {"gini": priors.gini, "l1": priors.l1, "l2": priors.l2}
YARDSTICK_STEPS = 16  # of Integrated Gradients on a network with biases, for the Gini coefficient


@dataclass(frozen=True)
class Settings:
    """What every method shares: the protocol's numbers. strengths: one, or several to choose from by validation."""

    prior: str = "gini"
    strengths: tuple[float, ...] = (0.3,)
    epochs: int = 100
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (512, 128, 32)
    samples: int = 1
    no_bias: bool = False

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise UserError(f"there is no prior {self.prior!r}; choose one of {', '.join(PRIORS)}")
        if not self.strengths or not all(0 <= s < float("inf") for s in self.strengths):
            raise UserError(f"strength is {list(self.strengths)}; wanted finite numbers, 0 or more")
        if not 0 < self.learning_rate <= 1000:
            raise UserError(f"the learning rate is {self.learning_rate}; wanted a number above 0, at most 1000")
        if min(self.epochs, self.samples, *self.hidden) < 1:
            raise UserError(
                f"epochs is {self.epochs}, samples {self.samples}, hidden {list(self.hidden)}; wanted at least 1 each"
            )


@dataclass(frozen=True)
class Outcome:
    """One trained network: ROC-AUC on test and validation rows, the epoch kept (from 1), Gini coefficient of the test
    attributions.
    """

    test_auc: float
    validation_auc: float
    best_epoch: int
    gini: float


@dataclass(frozen=True)
class Comparison:
    """One method over all splits, at the strength with the best mean validation ROC-AUC; seconds of a step, median."""

    method: str
    strength: float
    outcomes: tuple[Outcome, ...]
    step_seconds: float

    def values(self, field: str) -> list[float]:
        """`field` of every outcome, in the order of the splits."""
        return [float(getattr(outcome, field)) for outcome in self.outcomes]

    def spread(self, field: str) -> tuple[float, float]:
        """(mean, standard deviation over splits) of `field`; a single split has deviation 0."""
        values = torch.tensor(self.values(field), dtype=torch.float64)
        return values.mean().item(), values.std().item() if len(values) > 1 else 0.0


def has_bias(method: str, settings: Settings) -> bool:
    """Whether the network of a method has biases: none of them has with `no_bias`, the X-Gradient's never."""
    return METHODS[method].bias and not settings.no_bias


def make_network(features: int, settings: Settings, *, bias: bool, seed: int) -> nn.Sequential:
    """A perceptron [B, F] to [B, 1] initialised from the seed: an X-MLP, or the same with biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.xmlp([features, *settings.hidden, 1])
        if not bias:
            return network
        return nn.Sequential(
            *(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in network)
        )


def make_terms(
    network: nn.Module, method: str, settings: Settings, strength: float, generator: torch.Generator
) -> Callable[[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The terms of the loss of a batch (x, y), each []: cross entropy and, where the method has one, the prior."""
    prior, attributor = PRIORS[settings.prior], METHODS[method].attribute

    def terms(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        if attributor is None:
            return {"loss": binary_cross_entropy_with_logits(network(x).squeeze(1), y)}
        output, attribution = attributor(network, x, settings.samples, x, generator)
        loss = binary_cross_entropy_with_logits(output.squeeze(1), y)
        return {"loss": loss, "prior": strength * prior(attribution)}

    return terms


def make_step(
    network: nn.Module, method: str, settings: Settings, strength: float, split: Split, seed: int
) -> Callable[[], None]:
    """A full-batch training step of `network` on the training rows, as a function without arguments."""
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    terms = make_terms(network, method, settings, strength, torch.Generator().manual_seed(seed))
    return lambda: update(terms((split.train_x, split.train_y)), optimizer)


def roc_auc(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Area under the ROC curve of the network's output [n, 1] for labels y [n]; UserError if it has diverged."""
    with torch.no_grad():
        scores = network(x).squeeze(1)
    if not scores.isfinite().all():
        raise UserError("training diverged: the output is not finite; lower --strength or --learning-rate")
    return float(extras.load("sklearn.metrics").roc_auc_score(y.numpy(), scores.numpy()))


def concentration(network: nn.Module, x: Tensor, *, bias: bool) -> float:
    """Gini coefficient of the mean |attribution| over the rows of x [n, F].

    The attribution is the same for every method, Integrated Gradients with a zero baseline, so that methods compare;
    on a bias-free network that is the X-Gradient, and a single step is exact.
    """
    _, attribution = integrated_gradients(network, x, YARDSTICK_STEPS if bias else 1, x, torch.Generator())
    return -float(priors.gini(attribution.detach()))


class Best:
    """The epoch with the best score so far, the first of equals, and the network's weights then."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.score, self.epoch, self.epochs = -1.0, 0, 0
        self.weights = network.state_dict()

    def offer(self, score: float) -> None:
        """One more epoch, with this score."""
        self.epochs += 1
        if score > self.score:
            self.score, self.epoch, self.weights = score, self.epochs, deepcopy(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {name: value for name, value in vars(self).items() if name != "network"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


def train(
    split: Split, method: str, settings: Settings, strength: float, seed: int, **options: Any
) -> tuple[nn.Module, Outcome]:
    """Train one network on one split and keep the epoch with the best validation ROC-AUC, the first of equals.

    method: a key of METHODS. options: of `fit`, for checkpoints and progress. Returns the network with that epoch's
    weights, and its outcome.
    """
    bias = has_bias(method, settings)
    network = make_network(split.train_x.shape[1], settings, bias=bias, seed=seed)
    generator, best = torch.Generator().manual_seed(seed), Best(network)

    def validate() -> dict[str, float]:
        best.offer(roc_auc(network, split.validation_x, split.validation_y))
        return {"best AUC": best.score}

    fit(
        make_terms(network, method, settings, strength, generator),
        network,
        torch.optim.Adam(network.parameters(), settings.learning_rate),
        [(split.train_x, split.train_y)],
        epochs=settings.epochs,
        metric=validate,
        also={"best": best, "generator": generator},
        processes=Processes(),  # whoever else trains, trains other networks
        **{"progress": False, **options},
    )
    network.load_state_dict(best.weights)
    outcome = Outcome(
        test_auc=roc_auc(network, split.test_x, split.test_y),
        validation_auc=best.score,
        best_epoch=best.epoch,
        gini=concentration(network, split.test_x, bias=bias),
    )
    return network, outcome


def strengths_of(method: str, settings: Settings) -> tuple[float, ...]:
    """The strengths that a method is trained with: a method without prior has none to choose."""
    return settings.strengths if METHODS[method].attribute else (0.0,)


@dataclass(frozen=True)
class Job:
    """One network to train: on the split of its seed, by a method with a strength."""

    seed: int
    method: str
    strength: float

    def __str__(self) -> str:
        return f"{self.method}-{self.strength!r}-seed{self.seed}"


def jobs(methods: list[str], settings: Settings, seeds: int) -> list[Job]:
    """All networks of a comparison."""
    return [
        Job(seed, method, strength)
        for seed in range(seeds)
        for method in methods
        for strength in strengths_of(method, settings)
    ]


def compare(
    make_split: Callable[[int], Split],
    methods: list[str],
    settings: Settings,
    seeds: int,
    report: Callable[[], object] = lambda: None,
    *,
    runs: Runs | None = None,
    processes: Processes | None = None,
    talk: Talk | None = None,
    progress: Any = False,
) -> list[Comparison]:
    """Train every method on the same `seeds` random splits and time their steps in turn.

    make_split: seed to split. report: called after every trained network. runs: where to keep networks, so that
    SIGTERM and SIGINT stop the work in good order and it can go on. processes: which share out the networks among
    them; the first one times and returns the comparison, the others nothing. progress: as in `fit`. Everything but the
    seconds follows from the seeds 0 ... seeds - 1, however many processes there are and however often they stopped.
    """
    processes = processes or Processes()
    found: dict[Job, Outcome] = {}
    mine = jobs(methods, settings, seeds)[processes.rank :: processes.world]
    make_split = lru_cache(maxsize=1)(make_split)
    with announced(True), StopRequests(runs is not None) as requests:
        for done, job in enumerate(mine):
            requests.obey(f"with {done} of {len(mine)} networks trained; continue with --resume")
            found[job] = _outcome(job, make_split, settings, runs, progress)
            report()
        for others in (talk or Talk(processes)).all(found):
            found |= others
        if not processes.first:
            return []
        obey = partial(requests.obey, "while steps were timed; continue with --resume")
        seconds = time_steps(make_split(0), methods, settings, on_round=obey)
    outcomes = {(m, s): [found[Job(i, m, s)] for i in range(seeds)] for m in methods for s in strengths_of(m, settings)}
    results = []
    for method in methods:
        candidates = strengths_of(method, settings)
        chosen = max(candidates, key=partial(_mean_validation, outcomes, method))
        results.append(Comparison(method, chosen, tuple(outcomes[method, chosen]), seconds[method]))
    return results


def _outcome(
    job: Job, make_split: Callable[[int], Split], settings: Settings, runs: Runs | None, progress: Any
) -> Outcome:
    """Of a network that was trained before, or is trained now."""
    name = str(job)
    if runs is not None and (kept := runs.outcome(name)) is not None:
        return Outcome(**kept)
    options = {"progress": progress, "title": name, **(runs.fit_options(name) if runs is not None else {})}
    _, outcome = train(make_split(job.seed), job.method, settings, job.strength, job.seed, **options)
    if runs is not None:
        runs.keep(name, asdict(outcome))
    return outcome


def _mean_validation(outcomes: dict[tuple[str, float], list[Outcome]], method: str, strength: float) -> float:
    return mean(outcome.validation_auc for outcome in outcomes[method, strength])


def time_steps(
    split: Split,
    methods: list[str],
    settings: Settings,
    rounds: int = 50,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of one training step of every method, interleaved, each on a fresh network."""
    features = split.train_x.shape[1]

    def contestant(method: str) -> Callable[[], None]:
        network = make_network(features, settings, bias=has_bias(method, settings), seed=0)
        return make_step(network, method, settings, settings.strengths[0], split, seed=0)

    return medians(interleaved({method: contestant(method) for method in methods}, rounds, warmup=5, on_round=on_round))


def to_json(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """The comparison as `results.json` holds it: means, deviations and every split's values."""
    fields = ("test_auc", "validation_auc", "gini", "best_epoch")
    return [
        {
            "method": result.method,
            "strength": result.strength,
            "step_seconds": result.step_seconds,
            **{
                field: {"mean": mean_, "deviation": deviation, "values": result.values(field)}
                for field in fields
                for mean_, deviation in [result.spread(field)]
            },
        }
        for result in comparisons
    ]
