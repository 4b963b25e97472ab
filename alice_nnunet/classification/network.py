"""The classifier: an encoder, the mean over its tokens, one linear layer (Alice, B.3)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alice_nnunet.checkpoint import save_checkpoint
from alice_nnunet.classification.recipe import ClassificationRecipe, as_plain, recipe_from
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import grid_of
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.registry import build_encoder

FORMAT = "alice-classify 1"


class Classifier(nn.Module):
    """Logits from the mean of the tokens of the last stage.

    Args:
        encoder: of a pretraining, or with random weights.
        classes: number of classes.
        frozen: the encoder is not trained.
    """

    def __init__(self, encoder: Encoder, classes: int, frozen: bool = False):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

        self.frozen = frozen
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, classes)."""
        return self.head(self.encoder(image).float().mean(1))


def check_size(encoder: Encoder, recipe: ClassificationRecipe) -> None:
    """Raise UserError if an encoder does not take volumes of this size."""
    try:
        grid_of(recipe.size, encoder.unit)
    except ValueError as error:
        raise UserError(f"--set size: {error}") from None


@dataclass(frozen=True)
class SavedClassifier:
    """What the file of a trained classifier holds.

    Attributes:
        network: in evaluation mode, on the CPU.
        classes: names.
        channels: of a scan.
        recipe: of the training.
    """

    network: Classifier
    classes: tuple[str, ...]
    channels: int
    recipe: ClassificationRecipe


def save_classifier(
    path: Path,
    weights: dict[str, Tensor],
    encoder: str,
    arguments: dict,
    classes: tuple[str, ...],
    recipe: ClassificationRecipe,
) -> None:
    """Write a classifier: tensors and plain values.

    Args:
        path: of the file.
        weights: state dict of a Classifier.
        encoder: name.
        arguments: of the encoder's constructor.
        classes: names.
        recipe: of the training.
    """
    content = {
        "format": FORMAT,
        "network_weights": {name: tensor.cpu() for name, tensor in weights.items()},
        "encoder": encoder,
        "encoder_arguments": arguments,
        "classes": list(classes),
        "recipe": as_plain(recipe),
    }
    save_checkpoint(path, content)


def load_classifier(path: Path) -> SavedClassifier:
    """Read a classifier. Raises UserError if the file is none, or is broken."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a model of alice-classify train")

    encoder = build_encoder(content["encoder"], content["encoder_arguments"])
    classes = tuple(content["classes"])
    network = Classifier(encoder, len(classes))
    network.load_state_dict(content["network_weights"])
    channels = content["encoder_arguments"].get("in_channels", 1)
    return SavedClassifier(network.eval(), classes, channels, recipe_from(content["recipe"]))
