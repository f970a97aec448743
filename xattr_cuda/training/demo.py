"""The demonstration: decoy digits, with and without a prior against looking at the decoys."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import models, priors
from ..sweep import attribute, attribute_loss
from . import backends
from .decoy import CLASSES, SIDE, DecoyDigits, load_decoy_digits
from .errors import UserError
from .timing import interleaved, medians

Progress = Callable[[str, int, int], object]
"""(what is going on, steps done, steps in all)."""
Step = Callable[[Tensor, Tensor], object]
WARMUP_ROUNDS = 10  # of the timing


@dataclass(frozen=True)
class DemoSettings:
    """What can be chosen: epochs and rounds of timing in counts, strength in 1 / squared units of the loss."""

    seed: int = 0
    epochs: int = 20
    strength: float = 30.0
    batch: int = 64
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (512, 512, 512)
    timing_rounds: int = 100

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.timing_rounds < 1:
            raise UserError(
                f"epochs is {self.epochs} and timing rounds {self.timing_rounds}; wanted at least 1 of each"
            )
        if not 0 <= self.strength < float("inf"):
            raise UserError(f"strength is {self.strength}; wanted a finite number, 0 or more")


@dataclass(frozen=True)
class Quality:
    """accuracy: on the test set. corner_share: share of the total |attribution| of the predictions on the corners."""

    accuracy: float
    corner_share: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the demonstration measured, and the two networks. Seconds are medians of interleaved steps."""

    settings: DemoSettings
    plain: Quality
    prior: Quality
    step_seconds: dict[str, float]
    threads: int
    backend: str
    backend_remark: str
    data: DecoyDigits
    networks: dict[str, nn.Module]

    def ratios(self) -> dict[str, float]:
        """Seconds of each kind of step over the seconds of a plain one."""
        return {name: seconds / self.step_seconds["plain"] for name, seconds in self.step_seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds: figures and settings, no tensors."""
        return {
            "settings": asdict(self.settings),
            "plain": asdict(self.plain),
            "prior": asdict(self.prior),
            "step": {"median_seconds": self.step_seconds, "ratio_to_plain": self.ratios()},
            "threads": self.threads,
            "backend": self.backend,
            "torch": torch.__version__,
        }


def make_network(settings: DemoSettings) -> nn.Module:
    """The X-MLP of the demonstration, [B, 12, 12] to [B, 10], initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return nn.Sequential(nn.Flatten(), models.xmlp([SIDE * SIDE, *settings.hidden, CLASSES]))


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy alone, []. x: [B, 12, 12]; y: int64 [B]."""
    loss: Tensor = cross_entropy(model(x), y)
    return loss


def sweep_loss(model: nn.Module, x: Tensor, y: Tensor, prior: Callable[[Tensor], Tensor], strength: float) -> Tensor:
    """Cross entropy plus the prior on the attribution of the loss, [], through one chain of sweeps."""
    loss, _, attribution = attribute_loss(model, x, cross_entropy, y)
    # The loss is a mean, so one sample's share of it shrinks with the batch; times B the prior does not.
    return loss + strength * prior(attribution * len(x))


def eager_loss(model: nn.Module, x: Tensor, y: Tensor, prior: Callable[[Tensor], Tensor], strength: float) -> Tensor:
    """`sweep_loss` by PyTorch's double backward, []: the same number and the same gradient."""
    x = x.detach().requires_grad_()
    output = model(x)
    loss: Tensor = cross_entropy(output, y)
    (cotangent,) = torch.autograd.grad(loss, output, retain_graph=True)
    (gradient,) = torch.autograd.grad(output, x, cotangent, create_graph=True)
    return loss + strength * prior(x * gradient * len(x))


def make_step(settings: DemoSettings, model: nn.Module, loss: Callable[..., Tensor], *args: Any) -> Step:
    """One training step, step(x, y), of `model` on loss(model, x, y, *args), with an Adam of its own."""
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(model, x, y, *args).backward()
        optimizer.step()

    return step


def fit(settings: DemoSettings, data: DecoyDigits, step: Step, report: Callable[[], object]) -> None:
    """Run all epochs of `step` in an order drawn from the seed; `report` is called after every epoch."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(data.train_x), generator=generator).split(settings.batch):
            step(data.train_x[batch], data.train_y[batch])
        report()


def explain(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(predicted labels [B], attribution of the predicted label's logit [B, 12, 12])."""
    with torch.no_grad():
        predicted = model(x).argmax(1)
        return predicted, attribute(model, x, target=predicted).attribution


def evaluate(model: nn.Module, data: DecoyDigits) -> Quality:
    """Accuracy and share of attribution on the corners, over the test set."""
    predicted, attribution = explain(model, data.test_x)
    size = attribution.abs()  # [N, 12, 12]
    accuracy = (predicted == data.test_y).double().mean()
    return Quality(accuracy.item(), (size[:, data.corners].sum() / size.sum()).item())


def _losses(settings: DemoSettings, data: DecoyDigits) -> dict[str, tuple[Any, ...]]:
    prior = priors.right_reasons(data.corners)
    return {
        "plain": (plain_loss,),
        "prior (sweep)": (sweep_loss, prior, settings.strength),
        "prior (double backward)": (eager_loss, prior, settings.strength),
    }


def time_steps(settings: DemoSettings, data: DecoyDigits, report: Callable[[], object]) -> dict[str, float]:
    """Median seconds of one training step of each kind, interleaved, each on a fresh network and the same batch."""
    x, y = data.train_x[: settings.batch], data.train_y[: settings.batch]

    def contestant(loss: tuple[Any, ...]) -> Callable[[], object]:
        step = make_step(settings, make_network(settings), *loss)
        return lambda: step(x, y)

    contestants = {name: contestant(loss) for name, loss in _losses(settings, data).items()}
    return medians(interleaved(contestants, settings.timing_rounds, WARMUP_ROUNDS, report))


def run(settings: DemoSettings | None = None, progress: Progress = lambda *_: None) -> DemoResult:
    """Train both networks, evaluate them on the test set and time the steps.

    progress: called as the work goes on. Everything but the seconds follows from the seed.
    Raises UserError for settings out of range, MissingPackageError where scikit-learn is missing.
    """
    settings = settings or DemoSettings()
    data = load_decoy_digits(settings.seed)
    losses = _losses(settings, data)
    networks = {"plain": make_network(settings), "prior": make_network(settings)}
    for name, loss in zip(networks, (losses["plain"], losses["prior (sweep)"]), strict=True):
        words = f"Training {'without' if name == 'plain' else 'with'} the prior"
        fit(settings, data, make_step(settings, networks[name], *loss), _counter(progress, words, settings.epochs))
    rounds = settings.timing_rounds + WARMUP_ROUNDS
    seconds = time_steps(settings, data, _counter(progress, "Timing the steps in turn", rounds))
    backend, remark = backends.describe()
    return DemoResult(
        settings=settings,
        plain=evaluate(networks["plain"], data),
        prior=evaluate(networks["prior"], data),
        step_seconds=seconds,
        threads=torch.get_num_threads(),
        backend=backend,
        backend_remark=remark,
        data=data,
        networks=networks,
    )


def _counter(progress: Progress, words: str, total: int) -> Callable[[], object]:
    """A function that reports one more of `total` done each time it is called."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(words, done, total)

    progress(words, 0, total)
    return advance
