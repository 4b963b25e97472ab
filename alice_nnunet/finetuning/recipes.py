"""How each network is fine-tuned, as data (Alice, Table 8).

The plans carry a copy of the recipe, so every number can be changed there.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from alice_nnunet.errors import UserError
from alice_nnunet.settings.reading import OptionalValue

OPTIMIZERS = ("AdamW", "SGD")  # what the trainer knows
SCHEDULES = ("cosine", "poly")
PRECISIONS = ("auto", "fp32", "bf16")

# Probability of each augmentation for a patch. These are nnU-Net's, and so are their ranges.
# mirroring 1: along each axis every other time; shift: one number added to all intensities.
NNUNET_AUGMENTATION = {
    "rotation": 0.2,
    "scaling": 0.2,
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
    "mirroring": 1.0,
    "shift": 0.0,
}
NO_AUGMENTATION = dict.fromkeys(NNUNET_AUGMENTATION, 0.0)

# Table 8 names these augmentations and no others. It prints no probabilities: they are nnU-Net's,
# and a half for the shift, which nnU-Net does not do.
FLIP_ROTATION_SHIFT = {**NO_AUGMENTATION, "mirroring": 1.0, "rotation": 0.2, "shift": 0.5}
SCALING_BLUR_MIRRORING = {**NO_AUGMENTATION, "scaling": 0.2, "blur": 0.2, "mirroring": 1.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the trainer follows. Plans hold the same entries, in this order.

    Attributes:
        epochs: length of a training; nnU-Net's default, as are the iterations.
        iterations_per_epoch: training steps in an epoch.
        val_iterations_per_epoch: validation steps in an epoch.
        layer_decay: learning rate of a layer of the encoder as a share of that of the next layer.
        frozen_epochs: epochs at the start in which the encoder does not change.
        seed: of initial weights, batches and augmentation; None for another one every time.
        augmentation: probability of each augmentation.
        optimizer: AdamW or SGD.
        learning_rate: at the end of the warm-up.
        weight_decay: of the optimizer.
        momentum: of SGD, or AdamW's first beta.
        schedule: cosine or poly, after the warm-up.
        warmup_epochs: epochs at the start in which the learning rate rises linearly.
        precision: what a CPU computes the network in: fp32, bf16, or auto, bf16 where the CPU has
            it. On a GPU nnU-Net decides.
    """

    epochs: int = 1000
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50
    layer_decay: float = 1.0
    frozen_epochs: int = 0
    seed: int | None = None
    augmentation: dict[str, float]
    optimizer: str
    learning_rate: float
    weight_decay: float
    momentum: float
    schedule: str
    warmup_epochs: int
    precision: str = "auto"

    def as_entries(self) -> dict:
        """Plain data, as plans hold it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class EncoderRecipe:
    """The paper's fine-tuning of one encoder.

    Attributes:
        recipe: what the trainer follows.
        patch_size: voxels (z, y, x).
        batch_size: patches.
    """

    recipe: Recipe
    patch_size: tuple[int, int, int]
    batch_size: int = 8


VIT = Recipe(
    optimizer="AdamW",
    learning_rate=1e-4,
    weight_decay=1e-5,
    momentum=0.9,
    schedule="cosine",
    warmup_epochs=50,
    augmentation=FLIP_ROTATION_SHIFT,
)
NNFORMER = Recipe(
    optimizer="SGD",
    learning_rate=1e-2,
    weight_decay=3e-5,
    momentum=0.99,
    schedule="poly",
    warmup_epochs=40,
    augmentation=SCALING_BLUR_MIRRORING,
)
RECIPES = {
    "vit": EncoderRecipe(VIT, (96, 96, 96)),
    "swin": EncoderRecipe(dataclasses.replace(VIT, learning_rate=4e-4), (96, 96, 96)),
    "nnformer": EncoderRecipe(NNFORMER, (96, 128, 128)),
}

# Entries that plans of older versions lack, and what they mean there
ADDED_LATER = {
    "layer_decay": 1.0,
    "frozen_epochs": 0,
    "seed": None,
    "augmentation": NNUNET_AUGMENTATION,
    "precision": "fp32",
}

# Everything that `alice-plan --set` takes, with an example of its kind of value. augmentation is
# the name of a set, augmentation.blur the probability of one.
SETTINGS = {
    **VIT.as_entries(),
    "seed": OptionalValue(0),
    "augmentation": "nnunet",
    **{f"augmentation.{name}": 0.5 for name in NNUNET_AUGMENTATION},
}


def changed_recipe(
    recipe: Recipe,
    epochs: int | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
    settings: dict[str, Any] | None = None,
) -> Recipe:
    """Change a recipe where asked.

    Args:
        recipe: an encoder's.
        epochs: the warm-up keeps its share of them.
        iterations: for each epoch; validation keeps its share, at least 1.
        learning_rate: at the end of the warm-up.
        settings: of SETTINGS; they win over the others.

    Raises:
        UserError: the result is not a recipe that the trainer can follow.
    """
    changes: dict[str, Any] = {}

    if learning_rate is not None:
        changes["learning_rate"] = learning_rate

    if epochs is not None:
        changes["epochs"] = epochs
        changes["warmup_epochs"] = round(recipe.warmup_epochs * epochs / recipe.epochs)

    if iterations is not None:
        share = recipe.val_iterations_per_epoch / recipe.iterations_per_epoch
        changes["iterations_per_epoch"] = iterations
        changes["val_iterations_per_epoch"] = max(1, round(iterations * share))

    settings = settings or {}
    for name, value in settings.items():
        if not name.startswith("augmentation"):
            changes[name] = value
    changes["augmentation"] = changed_augmentation(recipe.augmentation, settings)

    changed = dataclasses.replace(recipe, **changes)
    check_recipe(changed)
    return changed


def changed_augmentation(paper: dict[str, float], settings: dict[str, Any]) -> dict[str, float]:
    """Probabilities after the settings: first a whole set, then single ones."""
    sets = {"paper": paper, "nnunet": NNUNET_AUGMENTATION, "none": NO_AUGMENTATION}
    chosen = settings.get("augmentation", "paper")
    if chosen not in sets:
        raise UserError(f"no set of augmentations {chosen!r}; known sets: {', '.join(sets)}")

    single = {
        name.removeprefix("augmentation."): value
        for name, value in settings.items()
        if name.startswith("augmentation.")
    }
    return {**sets[chosen], **single}


def recipe_from_entries(entries: dict) -> Recipe:
    """Read a recipe as plans hold it, also those of older versions.

    Raises:
        UserError: an entry is missing, unknown or not one that the trainer can follow.
    """
    known = {field.name for field in dataclasses.fields(Recipe)}
    complete = {**ADDED_LATER, **entries}

    if set(complete) != known:
        required = sorted(known - set(ADDED_LATER))
        raise UserError(
            f"the recipe in the plans must have {', '.join(required)} and may have "
            f"{', '.join(ADDED_LATER)}; it has {', '.join(sorted(entries))}"
        )

    recipe = Recipe(**complete)
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for a recipe that the trainer cannot follow to the letter."""
    choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
    for name, known in choices.items():
        value = getattr(recipe, name)
        if value not in known:
            raise UserError(f"the recipe's {name} is {value!r}; known: {', '.join(known)}")

    for name in ("epochs", "iterations_per_epoch", "val_iterations_per_epoch"):
        value = getattr(recipe, name)
        if value < 1:
            raise UserError(f"the recipe's {name} must be at least 1, got {value}")

    if not 0 <= recipe.warmup_epochs < recipe.epochs:
        raise UserError(
            f"the recipe's warm-up must be shorter than the training, got {recipe.warmup_epochs} "
            f"of {recipe.epochs} epochs"
        )
    if not 0 <= recipe.frozen_epochs <= recipe.epochs:
        raise UserError(
            f"the recipe's frozen_epochs must be between 0 and its {recipe.epochs} epochs, got "
            f"{recipe.frozen_epochs}"
        )

    if not 0 < recipe.learning_rate < 1:
        raise UserError(
            f"the recipe's learning_rate must be above 0 and below 1, got {recipe.learning_rate}"
        )
    for name in ("weight_decay", "momentum"):
        value = getattr(recipe, name)
        if not 0 <= value < 1:
            raise UserError(f"the recipe's {name} must be at least 0 and below 1, got {value}")
    if not 0 < recipe.layer_decay <= 1:
        raise UserError(
            f"the recipe's layer_decay must be above 0 and at most 1, got {recipe.layer_decay}"
        )

    if recipe.seed is not None and recipe.seed < 0:
        raise UserError(f"the recipe's seed must not be negative, got {recipe.seed}")

    augmentation = recipe.augmentation
    in_range = all(0 <= probability <= 1 for probability in augmentation.values())
    if set(augmentation) != set(NNUNET_AUGMENTATION) or not in_range:
        raise UserError(
            f"the recipe's augmentation must give a probability from 0 to 1 to each of "
            f"{', '.join(NNUNET_AUGMENTATION)}; it is {augmentation}"
        )
