"""The demonstration: decoy digits, with and without a prior against looking at the decoys."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Sampler, TensorDataset

from .. import models, priors
from ..sweep import Sweep, attribute, attribute_loss
from . import backends
from .decoy import CLASSES, SIDE, DecoyDigits, load_decoy_digits
from .distributed import Processes
from .errors import UserError
from .loop import fit
from .timing import interleaved, medians

if TYPE_CHECKING:
    from rich.progress import Progress

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


def sweep_terms(
    sweep: Callable[..., tuple[Tensor, ...]], x: Tensor, y: Tensor, prior: Callable[[Tensor], Tensor], strength: float
) -> dict[str, Tensor]:
    """Cross entropy and the prior on its attribution, each [], by sweep(x, y): (loss, output, attribution)."""
    loss, _, attribution = sweep(x, y)
    # The loss is a mean, so one sample's share of it shrinks with the batch; times B the prior does not.
    return {"loss": loss, "prior": strength * prior(attribution * len(x))}


def sweep_loss(model: nn.Module, x: Tensor, y: Tensor, prior: Callable[[Tensor], Tensor], strength: float) -> Tensor:
    """Cross entropy plus the prior on the attribution of the loss, [], through one chain of sweeps."""
    terms = sweep_terms(lambda x, y: attribute_loss(model, x, cross_entropy, y), x, y, prior, strength)
    return terms["loss"] + terms["prior"]


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


class Permutations(Sampler[int]):
    """The numbers below `size` in an order that a generator, begun from `seed`, draws anew for every epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size, generator=self.generator).tolist())

    def __len__(self) -> int:
        return self.size


def batches(settings: DemoSettings, data: DecoyDigits, processes: Processes) -> DataLoader:
    """The training set in batches (x, y), in an order drawn from the seed; of several processes each has its share."""
    rows = TensorDataset(data.train_x, data.train_y)
    if processes.world > 1:
        return processes.loader(rows, settings.batch, seed=settings.seed)
    order = BatchSampler(Permutations(len(rows), settings.seed), settings.batch, drop_last=False)
    return DataLoader(rows, sampler=order, batch_size=None)  # rows of a batch are taken at once


def train(
    settings: DemoSettings, data: DecoyDigits, prior: bool, progress: "Progress | bool", processes: Processes
) -> nn.Module:
    """A network trained without or with the prior, by all processes together."""
    network = make_network(settings)
    if prior:
        sweep, penalty = processes.wrap(Sweep(network, cross_entropy)), priors.right_reasons(data.corners)

        def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return sweep_terms(sweep, *batch, penalty, settings.strength)
    else:
        replica = processes.wrap(network)

        def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {"loss": plain_loss(replica, *batch)}

    fit(
        *(step, network, torch.optim.Adam(network.parameters(), settings.learning_rate)),
        batches(settings, data, processes),
        epochs=settings.epochs,
        metric=lambda: {"accuracy": accuracy(network, data.test_x, data.test_y)},
        progress=progress,
        title=f"Training {'with' if prior else 'without'} the prior",
        processes=processes,
    )
    return network


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose label is predicted."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def explain(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(predicted labels [B], attribution of the predicted label's logit [B, 12, 12])."""
    with torch.no_grad():
        predicted = model(x).argmax(1)
        return predicted, attribute(model, x, target=predicted).attribution


def evaluate(model: nn.Module, data: DecoyDigits) -> Quality:
    """Accuracy and share of attribution on the corners, over the test set."""
    size = explain(model, data.test_x)[1].abs()  # [N, 12, 12]
    return Quality(accuracy(model, data.test_x, data.test_y), (size[:, data.corners].sum() / size.sum()).item())


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


def run(
    settings: DemoSettings | None = None, progress: "Progress | None" = None, processes: Processes | None = None
) -> DemoResult | None:
    """Train both networks, evaluate them on the test set and time the steps.

    progress: a bar for the work to be shown on. Everything but the seconds follows from the seed and the number of
    processes, which train together; the first one measures, the others return None.
    Raises UserError for settings out of range, MissingPackageError where scikit-learn is missing.
    """
    settings, processes = settings or DemoSettings(), processes or Processes()
    data = load_decoy_digits(settings.seed)
    networks = {
        name: train(settings, data, name == "prior", progress or False, processes) for name in ("plain", "prior")
    }
    if not processes.first:
        return None
    seconds = time_steps(settings, data, counter(progress, "Timing", settings.timing_rounds + WARMUP_ROUNDS))
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


def counter(progress: "Progress | None", words: str, total: int) -> Callable[[], object]:
    """A function to call for each of `total` parts of the work; `progress`, if there is one, shows them."""
    if progress is None:
        return lambda: None
    task = progress.add_task(words, total=total)
    return lambda: progress.advance(task)
