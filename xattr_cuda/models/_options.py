"""The options that the image models share, and their checks."""

from typing import TypedDict

import torch


class ImageOptions(TypedDict, total=False):
    """num_classes (1000): outputs. in_channels (3): channels of the images. image_size (224): their side in pixels.

    device and dtype: of the parameters; PyTorch's defaults if left out.
    """

    num_classes: int
    in_channels: int
    image_size: int
    device: torch.device | str | None
    dtype: torch.dtype | None


class DropoutOptions(ImageOptions, total=False):
    """ImageOptions, and dropout (0.5): the rate before or after the hidden layers of the classifier."""

    dropout: float


def check_sizes(**sizes: tuple[int, int]) -> None:
    """Raise ValueError for an option, given as name=(value, least), that is smaller than it may be."""
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"`{name}` is {value}; wanted an integer of at least {least}")
