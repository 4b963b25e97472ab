"""One run: train a classifier, keep the step with the best validation AUC, test it once."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from alice_nnunet.classification.augmentation import augmentation
from alice_nnunet.classification.cases import Case
from alice_nnunet.classification.metrics import mean_auc, mean_log_loss
from alice_nnunet.classification.network import Classifier
from alice_nnunet.classification.recipe import ClassificationRecipe
from alice_nnunet.classification.volumes import VolumeCache
from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.seeded_loading import seed_generators
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.schedules import warmup_cosine
from alice_nnunet.settings.device import half_precision
from alice_nnunet.settings.options import default_processes
from alice_nnunet.workers import started

ORDER, AUGMENTATION, HEAD = 1, 2, 3  # streams of random numbers


class TrainingVolumes(Dataset):
    """Every volume of a run in the order of its steps: item k is the same in any process.

    Args:
        cache: of the volumes.
        cases: to train on.
        recipe: of the run.
        seed: of order and augmentation.
    """

    def __init__(
        self, cache: VolumeCache, cases: tuple[Case, ...], recipe: ClassificationRecipe, seed: int
    ):
        self.cache = cache
        self.cases = cases
        self.recipe = recipe
        self.seed = seed
        self.transform = augmentation(recipe.size) if recipe.augment else None

    def __len__(self) -> int:
        return self.recipe.iterations * self.recipe.batch_size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A volume (C, D, H, W) and its label."""
        epoch, place = divmod(index, len(self.cases))
        order = np.random.default_rng((self.seed, ORDER, epoch)).permutation(len(self.cases))
        case = self.cases[order[place]]

        image = self.cache.load(case.name)
        if self.transform is not None:
            seed_generators(self.seed, AUGMENTATION, index)
            image = self.transform(image=image)["image"]
        return image, case.label


@dataclass(frozen=True)
class Validation:
    """What a step gives on the validation cases."""

    step: int
    auc: float
    log_loss: float


@dataclass(frozen=True)
class TrainedRun:
    """The end of a run.

    Attributes:
        weights: state dict of the classifier at the best step.
        best: the step with the highest validation AUC, of equal ones the lowest log loss.
        history: of all validations.
        probabilities: (cases, classes) of the test cases, at the best step.
    """

    weights: dict[str, Tensor]
    best: Validation
    history: tuple[Validation, ...]
    probabilities: np.ndarray


def train_classifier(
    encoder: Encoder,
    cache: VolumeCache,
    parts: tuple[tuple[Case, ...], tuple[Case, ...], tuple[Case, ...]],
    classes: int,
    recipe: ClassificationRecipe,
    seed: int,
    device: torch.device,
    tell: Callable[[Validation], None],
) -> TrainedRun:
    """Train on the first part, choose the step by the second, test on the third.

    Args:
        encoder: as the run starts; it is changed.
        cache: of the volumes.
        parts: cases for training, validation and test.
        classes: number of classes.
        recipe: of the run.
        seed: of the linear layer, the order and the augmentation.
        device: to train on.
        tell: is called after each validation.

    Raises:
        UserError: the loss is not finite.
    """
    train, validation, test = parts
    seed_generators(seed, HEAD)
    network = Classifier(encoder, classes, recipe.frozen).to(device)
    parameters = [p for p in network.parameters() if p.requires_grad]
    betas = (recipe.momentum, 0.999)
    optimizer = AdamW(parameters, recipe.lr, betas, weight_decay=recipe.weight_decay)
    loss_of = nn.CrossEntropyLoss(class_weights(train, classes, recipe).to(device))

    history: list[Validation] = []
    weights: dict[str, Tensor] = {}
    total = torch.zeros((), device=device)
    network.train()
    for step, (image, label) in enumerate(batches(cache, train, recipe, seed, device)):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, recipe.iterations, recipe.warmup_iterations, recipe.lr
            )

        with half_precision(device):
            loss = loss_of(network(image).float(), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()

        done = step + 1
        if done % recipe.validate_every and done != recipe.iterations:
            continue
        if not math.isfinite(total.item()):
            raise UserError(
                f"the loss was not finite before step {done}: use a lower learning rate, "
                f"--set lr={recipe.lr / 3:.1g}"
            )
        found = validate(network, cache, validation, done, device)
        if not history or key_of(found) > max(map(key_of, history)):
            weights = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
        history.append(found)
        tell(found)

    network.load_state_dict(weights)
    best = max(history, key=key_of)
    return TrainedRun(weights, best, tuple(history), predict(network, cache, test, device))


def key_of(found: Validation) -> tuple[float, float]:
    """The larger the better. max() takes the earliest of equal ones."""
    return found.auc, -found.log_loss


def batches(
    cache: VolumeCache,
    cases: tuple[Case, ...],
    recipe: ClassificationRecipe,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, D, H, W) and labels (B,) on the device, one batch for each step."""
    on_gpu = device.type == "cuda"
    workers = recipe.workers
    if workers is None:
        workers = default_processes() if on_gpu else 0

    loader = DataLoader(
        TrainingVolumes(cache, cases, recipe, seed),
        recipe.batch_size,
        num_workers=workers,
        pin_memory=on_gpu,
    )
    for image, label in started(loader):
        yield image.to(device, non_blocking=True), label.to(device, non_blocking=True)


def class_weights(cases: tuple[Case, ...], classes: int, recipe: ClassificationRecipe) -> Tensor:
    """(classes,) weights of the loss, by the cases for training."""
    if recipe.class_weights == "none":
        return torch.ones(classes)
    counts = np.bincount([case.label for case in cases], minlength=classes)
    return torch.tensor(len(cases) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def validate(
    network: Classifier,
    cache: VolumeCache,
    cases: tuple[Case, ...],
    step: int,
    device: torch.device,
) -> Validation:
    """AUC and log loss of the validation cases."""
    probabilities = predict(network, cache, cases, device)
    labels = np.array([case.label for case in cases])
    return Validation(step, mean_auc(labels, probabilities), mean_log_loss(labels, probabilities))


@torch.no_grad()
def predict(
    network: Classifier, cache: VolumeCache, cases: tuple[Case, ...], device: torch.device
) -> np.ndarray:
    """(cases, classes) probabilities, float64. The network is left in training mode."""
    network.eval()
    rows = [probabilities_of(network, cache.load(case.name), device) for case in cases]
    network.train()
    return np.stack(rows)


@torch.no_grad()
def probabilities_of(network: Classifier, image: Tensor, device: torch.device) -> np.ndarray:
    """(C, D, H, W) -> (classes,) probabilities, float64, of a network in evaluation mode."""
    with half_precision(device):
        logits = network(image[None].to(device))
    return logits[0].double().softmax(0).cpu().numpy()
