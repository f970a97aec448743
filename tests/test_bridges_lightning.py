"""The callback for Lightning, with its real Trainer: one process, two processes, and what goes wrong."""

import copy
import sys

import pytest
import torch
from helpers import relative_error
from test_examples import EXAMPLES, run, run_group
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xattr_cuda as xa
from xattr_cuda.extras import MissingPackageError

L = pytest.importorskip("lightning", reason="Lightning is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning over PyTorch 2.13
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

RATE, STRENGTH, EPOCHS = 0.1, 0.5, 2


class Classifier(L.LightningModule):
    """As a user writes it, without a thought for attributions."""

    def __init__(self):
        super().__init__()
        self.net = xa.models.xmlp([6, 16, 3])
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, labels = batch
        loss = nn.functional.cross_entropy(self.net(x), labels)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), RATE)


class Whole(Classifier):
    """A LightningModule that is the network itself, with a dictionary for a result and no batch index."""

    def __init__(self):
        super().__init__()
        self.first, self.second = self.net[0], self.net[2]
        del self.net

    def forward(self, x):
        return self.second(self.first(x).relu())

    def training_step(self, batch):
        x, labels = batch
        return {"loss": nn.functional.cross_entropy(self(x), labels), "labels": labels}


def labels_of(batch):
    return batch[1]


def batches(size=8, rows=24):
    data = TensorDataset(torch.randn(rows, 6), torch.randint(3, (rows,)))
    return DataLoader(data, size)


def trainer(folder, *callbacks, **settings):
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, **settings}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        callbacks=list(callbacks), default_root_dir=folder, enable_model_summary=False, **quiet, **settings
    )


def prior_on(network, **settings):
    settings = {"prior": xa.priors.l1, "strength": STRENGTH, "target": labels_of, **settings}
    return xa.bridges.AttributionPrior(network=network, **settings)


def by_hand(network, loader, strength=lambda step: STRENGTH, accumulate=1, autocast=False):
    """The same training in a plain loop; returns the values of the prior. `network` is trained."""
    optimizer, values, steps = torch.optim.SGD(network.parameters(), RATE), [], 0
    for _ in range(EPOCHS):
        for i, (x, labels) in enumerate(loader):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output, attribution = xa.attribute(network, x, labels)
                prior = xa.priors.l1(attribution)
                loss = nn.functional.cross_entropy(output, labels) + strength(steps) * prior
            (loss / accumulate).backward()
            values.append(prior.item())
            if (i + 1) % accumulate == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return values


def assert_same_weights(got, want, tolerance=1e-6):
    for (name, p), q in zip(got.named_parameters(), want.parameters(), strict=True):
        error = relative_error(p, q)
        assert error <= tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


SETTINGS = {
    "plain": ({}, {}, {}),
    "a strength by step": ({"strength": lambda step: 0.1 * step}, {}, {"strength": lambda step: 0.1 * step}),
    "gradients of two batches": ({}, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "bf16": ({}, {"precision": "bf16-mixed"}, {"autocast": True}),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("kind", "network"), [(Classifier, "net"), (Whole, "")], ids=["submodule", "whole"])
def test_the_trainer_takes_the_steps_of_a_loop_with_the_prior(name, kind, network, tmp_path):
    of_prior, of_trainer, of_loop = SETTINGS[name]
    module, loader = kind(), batches()
    twin = copy.deepcopy(module)
    start = copy.deepcopy(module)
    fitted = trainer(tmp_path, prior_on(network, **of_prior), **of_trainer)
    fitted.fit(module, loader)
    values = by_hand(twin.get_submodule(network), loader, **of_loop)
    assert_same_weights(module, twin)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same_weights(module, start)
    assert float(fitted.callback_metrics["prior"]) == pytest.approx(values[-1], rel=1e-4)
    assert not {"training_step", "networks"} & set(vars(module))  # as it was
    assert not list(tmp_path.iterdir())


def test_the_logged_loss_is_the_step_s_own(tmp_path):
    module = Classifier()
    fitted = trainer(tmp_path, prior_on("net", name="l1"))
    fitted.fit(module, batches())
    assert float(fitted.callback_metrics["loss"]) == pytest.approx(module.losses[-1])
    assert set(fitted.callback_metrics) == {"loss", "l1"}


class Twice(Classifier):
    """A network called twice, and once more without gradients; every other step is skipped."""

    def training_step(self, batch, batch_idx):
        x, labels = batch
        with torch.no_grad():
            self.net(x)
        if batch_idx % 2:
            return None
        return nn.functional.cross_entropy(self.net(x) + self.net(2 * x), labels)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_the_prior_is_the_mean_over_calls_and_leaves_skipped_steps_alone(tmp_path):
    module, loader = Twice(), batches()
    twin = copy.deepcopy(module)
    trainer(tmp_path, prior_on("net"), max_epochs=1).fit(module, loader)
    optimizer = torch.optim.SGD(twin.parameters(), RATE)
    for x, labels in list(loader)[::2]:
        first, second = xa.attribute(twin.net, x, labels), xa.attribute(twin.net, 2 * x, labels)
        prior = (xa.priors.l1(first.attribution) + xa.priors.l1(second.attribution)) / 2
        loss = nn.functional.cross_entropy(first.output + second.output, labels) + STRENGTH * prior
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_same_weights(module, twin)


class Ensemble(Classifier):
    def __init__(self):
        super().__init__()
        self.other = xa.models.xmlp([6, 3])

    def training_step(self, batch, batch_idx):
        x, labels = batch
        return nn.functional.cross_entropy(self.net(x) + self.other(x), labels)


def test_two_networks_have_a_callback_each_and_one_network_one(tmp_path):
    module, (batch,) = Ensemble(), batches(24)
    twin = copy.deepcopy(module)
    callbacks = prior_on("net"), prior_on("other", prior=xa.priors.l2, name="l2")
    trainer(tmp_path, *callbacks, max_epochs=1).fit(module, DataLoader(TensorDataset(*batch), 24))
    assert "training_step" not in vars(module)
    (y, a), (z, b) = (xa.attribute(net, *batch) for net in (twin.net, twin.other))
    prior = xa.priors.l1(a) + xa.priors.l2(b)
    (nn.functional.cross_entropy(y + z, batch[1]) + STRENGTH * prior).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p -= RATE * p.grad
    assert_same_weights(module, twin)
    with pytest.raises(ValueError, match="two AttributionPrior have the network 'net'"):
        trainer(tmp_path, prior_on("net"), prior_on("net")).fit(module, batches())


class Failing(Classifier):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise KeyError("broken data")
        return super().training_step(batch, batch_idx)


def test_after_an_error_the_module_is_as_it_was(tmp_path):
    module = Failing()
    with pytest.raises(KeyError, match="broken data"):
        trainer(tmp_path, prior_on("net")).fit(module, batches())
    assert "training_step" not in vars(module)
    assert "forward" not in vars(module.net)


class ByHand(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Biased(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 3))


class Stranger(Classifier):
    def __init__(self):
        super().__init__()
        self.unused = xa.models.xmlp([6, 3])


@pytest.mark.parametrize(
    ("kind", "network", "error", "message"),
    [
        (Classifier, "body", ValueError, "Classifier has no network 'body'; it has 'net'"),
        (ByHand, "net", ValueError, "ByHand optimises by hand"),
        (Biased, "net", xa.NotHomogeneousError, r"layer '0' \(Linear\): it has a bias"),
        (Stranger, "unused", RuntimeError, "did not call the network 'unused'"),
    ],
    ids=["no such network", "manual optimisation", "a bias", "not called"],
)
def test_a_mistake_is_named(kind, network, error, message, tmp_path):
    with pytest.raises(error, match=message):
        trainer(tmp_path, prior_on(network)).fit(kind(), batches())


def test_a_compiled_module_is_refused(tmp_path):
    module = Classifier()
    with pytest.raises(ValueError, match="Classifier is compiled"):
        trainer(tmp_path, prior_on("net")).fit(torch.compile(module, backend="eager"), batches())


# A fresh process that imports once and forks both workers; and Lightning under its other name.
TWO_PROCESSES = """
import sys
from datetime import timedelta

import pytorch_lightning as L
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import xattr_cuda as xa

class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = xa.models.xmlp([6, 16, 3])

    def training_step(self, batch):
        x, labels = batch
        return torch.nn.functional.cross_entropy(self.net(x), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), {rate})

x, labels, weights = torch.load("start.pt")
module = Classifier()
module.net.load_state_dict(weights)
prior = xa.bridges.AttributionPrior(xa.priors.l1, {strength}, network="net", target=lambda batch: batch[1])
assert isinstance(prior, L.Callback)
strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs={epochs}, callbacks=[prior], **quiet)
trainer.fit(module, DataLoader(TensorDataset(x, labels), len(x) // 2))
assert trainer.world_size == 2
assert "lightning.pytorch" not in sys.modules
torch.save((module.net.state_dict(), trainer.callback_metrics["prior"]), "end.pt")
"""


def test_two_processes_train_as_one_on_the_global_batch(tmp_path):
    network, (batch,) = xa.models.xmlp([6, 16, 3]), batches(8, rows=8)  # half of all rows each, in whatever order
    torch.save((*batch, network.state_dict()), tmp_path / "start.pt")
    start = copy.deepcopy(network)
    run_group(TWO_PROCESSES.format(rate=RATE, strength=STRENGTH, epochs=EPOCHS), tmp_path)
    weights, prior = torch.load(tmp_path / "end.pt")
    start.load_state_dict(weights)
    by_hand(network, [batch])
    assert_same_weights(start, network)
    assert float(prior) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end.pt", "start.pt"]


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    from xattr_cuda.bridges import lightning

    for name in [name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(MissingPackageError, match=r"needs lightning.*pip install xattr_cuda\[lightning\]"):
        lightning._library()


def test_the_example_runs(tmp_path):
    process = run(EXAMPLES / "lightning_prior.py", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not list(tmp_path.iterdir())
    without, with_prior = (float(line.split("%")[0].split()[-1]) for line in process.stdout.splitlines()[-2:])
    assert with_prior > without + 3
