"""Lightning: three lines add a prior to a LightningModule that knows nothing of attributions.

    python examples/lightning_prior.py

Handwritten digits carry a patch in a corner that betrays the label in training and misleads in testing, as in
`xattr-cuda demo`. The prior of Ross, Hughes and Doshi-Velez 2017 holds the attribution of the label away from the
corners. Needs the extras `lightning` and `demo`: pip install --no-build-isolation '.[lightning,demo]'
"""

import logging
import warnings
from typing import Annotated, Any

import lightning as L
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import xattr_cuda as xa
from xattr_cuda.training.decoy import DecoyDigits, load_decoy_digits

warnings.filterwarnings("ignore", module="lightning")  # about workers of data loaders, and PyTorch's deprecations
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Digits(L.LightningModule):
    """A classifier of images [B, 12, 12], as anyone would write it: nothing in it is about attributions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), *xa.models.xmlp([144, 128, 10]))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def labels_of(batch: tuple[Tensor, Tensor]) -> Tensor:
    return batch[1]


def train(data: DecoyDigits, epochs: int, *callbacks: L.Callback) -> tuple[Digits, dict[str, Any]]:
    """A trained module and what it logged last."""
    torch.manual_seed(0)
    module, loader = Digits(), DataLoader(TensorDataset(data.train_x, data.train_y), 100, shuffle=True)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), enable_model_summary=False, **quiet
    )
    trainer.fit(module, loader)
    return module, trainer.callback_metrics


@torch.no_grad()
def report(name: str, module: Digits, data: DecoyDigits) -> None:
    output, attribution = xa.attribute(module.net, data.test_x, data.test_y)
    accuracy = (output.argmax(1) == data.test_y).double().mean()
    share = attribution.abs().sum(0)[data.corners].sum() / attribution.abs().sum()
    print(f"{name}: accuracy {accuracy:.1%}, of the attribution in the corners {share:.1%}")


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the 1,197 training images.", min=1)] = 10,
    strength: Annotated[float, typer.Option(help="Of the prior.", min=0)] = 100.0,
) -> None:
    """Train without and with the prior, and test where the corners mislead."""
    data = load_decoy_digits()
    without, _ = train(data, epochs)
    right = xa.priors.right_reasons(data.corners)
    prior = xa.bridges.AttributionPrior(right, strength, network="net", target=labels_of)
    module, logged = train(data, epochs, prior)
    print(f"Logged last: loss {logged['loss']:.3f}, prior {logged['prior']:.3f}")
    report("without the prior", without, data)
    report("with the prior   ", module, data)


if __name__ == "__main__":
    typer.run(main)
