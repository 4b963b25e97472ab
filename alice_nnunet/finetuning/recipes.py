"""How each network is fine-tuned, as data (Alice, Table 8). The plans carry a copy, so every number can be changed there."""

from alice_nnunet.errors import UserError

# Probabilities of nnU-Net's own augmentations for a patch; those of the seven intensity transforms and of rotation and
# scaling are nnU-Net's, and so are their ranges. mirroring 1: each axis, every other time. shift: of all intensities.
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
NONE = dict.fromkeys(NNUNET_AUGMENTATION, 0.0)
# Table 8 names these and no more; it prints no probabilities, so they are nnU-Net's, and a half for what nnU-Net does not do
FLIP_ROTATION_SHIFT = {**NONE, "mirroring": 1.0, "rotation": 0.2, "shift": 0.5}
SCALING_BLUR_MIRRORING = {**NONE, "scaling": 0.2, "blur": 0.2, "mirroring": 1.0}

OPTIONAL = {  # entries that plans may lack, and what they then mean
    "layer_decay": 1.0,  # learning rate of an encoder's layer, as a share of that of the layer above it
    "frozen_epochs": 0,  # at the start, in which the encoder does not change
    "seed": None,  # of initial weights, batches and augmentation; None as nnU-Net does, another one every time
    "augmentation": NNUNET_AUGMENTATION,
}
COMMON = {
    "epochs": 1000,
    "iterations_per_epoch": 250,
    "val_iterations_per_epoch": 50,  # iterations are nnU-Net's
    **OPTIONAL,
    "batch_size": 8,
}
RECIPES = {
    "vit": {
        **COMMON,
        "optimizer": "AdamW",
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "momentum": 0.9,
        "schedule": "cosine",
        "warmup_epochs": 50,
        "patch_size": [96, 96, 96],
        "augmentation": FLIP_ROTATION_SHIFT,
    },
    "swin": {
        **COMMON,
        "optimizer": "AdamW",
        "learning_rate": 4e-4,
        "weight_decay": 1e-5,
        "momentum": 0.9,
        "schedule": "cosine",
        "warmup_epochs": 50,
        "patch_size": [96, 96, 96],
        "augmentation": FLIP_ROTATION_SHIFT,
    },
    "nnformer": {
        **COMMON,
        "optimizer": "SGD",
        "learning_rate": 1e-2,
        "weight_decay": 3e-5,
        "momentum": 0.99,
        "schedule": "poly",
        "warmup_epochs": 40,
        "patch_size": [96, 128, 128],
        "augmentation": SCALING_BLUR_MIRRORING,
    },
}
OPTIMIZERS, SCHEDULES = ("AdamW", "SGD"), ("cosine", "poly")  # what the trainer knows
OF_THE_CONFIGURATION = ("batch_size", "patch_size")  # they are nnU-Net's own entries in the plans


def training_recipe(
    recipe: dict,
    epochs: int | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
    settings: dict | None = None,
) -> dict:
    """The part of a recipe that the trainer follows, changed where asked.

    epochs: the warm-up keeps its share of them. iterations: for each epoch; validation keeps its share, at least 1.
    learning_rate: at the end of the warm-up. settings: of names(), and they have the last word.
    """
    training = {key: value for key, value in recipe.items() if key not in OF_THE_CONFIGURATION}
    if learning_rate is not None:
        training |= {"learning_rate": learning_rate}
    if epochs is not None:
        training |= {
            "epochs": epochs,
            "warmup_epochs": round(recipe["warmup_epochs"] * epochs / recipe["epochs"]),
        }
    if iterations is not None:
        share = recipe["val_iterations_per_epoch"] / recipe["iterations_per_epoch"]
        training |= {
            "iterations_per_epoch": iterations,
            "val_iterations_per_epoch": max(1, round(iterations * share)),
        }
    return with_settings(training, settings or {})


def setting_names(recipe: dict) -> dict:
    """Everything about a training that can be set: {name: an example of its kind}. augmentation is the name of a whole set,
    augmentation.blur the probability of one."""
    training = {key: value for key, value in recipe.items() if key not in OF_THE_CONFIGURATION}
    return {
        **training,
        "seed": 0,
        "augmentation": "nnunet",
        **{f"augmentation.{name}": 0.5 for name in recipe["augmentation"]},
    }


def with_settings(training: dict, settings: dict) -> dict:
    """training with settings of setting_names() in it. Raises UserError for a set of augmentations that does not exist."""
    sets = {"paper": training["augmentation"], "nnunet": NNUNET_AUGMENTATION, "none": NONE}
    if (chosen := settings.get("augmentation", "paper")) not in sets:
        raise UserError(f"there is no set of augmentations {chosen!r}; known: {', '.join(sets)}")
    single = {
        name.removeprefix("augmentation."): value
        for name, value in settings.items()
        if name.startswith("augmentation.")
    }
    others = {
        name: value for name, value in settings.items() if not name.startswith("augmentation")
    }
    return {**training, **others, "augmentation": {**sets[chosen], **single}}


def full_recipe(recipe: dict) -> dict:
    """A recipe of plans, with what plans written before it existed lack."""
    return {**OPTIONAL, **recipe}


def check_recipe(recipe: dict) -> None:
    """Raise UserError for a recipe, as plans hold it, that the trainer cannot follow to the letter."""
    expected = {key for key in RECIPES["vit"] if key not in OF_THE_CONFIGURATION}
    if set(full_recipe(recipe)) != expected:
        raise UserError(
            f"the recipe in the plans must have {', '.join(sorted(expected - set(OPTIONAL)))} and may have "
            f"{', '.join(OPTIONAL)}; it has {', '.join(sorted(recipe))}"
        )
    for key, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if recipe[key] not in known:
            raise UserError(
                f"the recipe in the plans asks for {key} {recipe[key]!r}; known: {', '.join(known)}"
            )
    if not 0 <= recipe["warmup_epochs"] < recipe["epochs"]:
        raise UserError(
            f"the recipe's warm-up must be shorter than the training, got {recipe['warmup_epochs']} of "
            f"{recipe['epochs']} epochs"
        )
    check_ranges(full_recipe(recipe))


def check_ranges(recipe: dict) -> None:
    """Raise UserError for a number out of its range, or an augmentation that nobody knows."""
    for name in ("epochs", "iterations_per_epoch", "val_iterations_per_epoch"):
        if recipe[name] < 1:
            raise UserError(f"the recipe's {name} must be at least 1, got {recipe[name]}")
    for name, low, high in (("learning_rate", 0, 1), ("weight_decay", 0, 1), ("momentum", 0, 1)):
        if not low <= recipe[name] < high or recipe["learning_rate"] == 0:
            raise UserError(
                f"the recipe's {name} must be between {low} and {high}, got {recipe[name]}"
            )
    if not 0 < recipe["layer_decay"] <= 1:
        raise UserError(
            f"the recipe's layer_decay must be above 0 and at most 1, got {recipe['layer_decay']}"
        )
    if not 0 <= recipe["frozen_epochs"] <= recipe["epochs"]:
        raise UserError(
            f"the recipe's frozen_epochs must be between 0 and its {recipe['epochs']} epochs, got {recipe['frozen_epochs']}"
        )
    if recipe["seed"] is not None and recipe["seed"] < 0:
        raise UserError(f"the recipe's seed must not be negative, got {recipe['seed']}")
    if set(recipe["augmentation"]) != set(NNUNET_AUGMENTATION) or not all(
        0 <= p <= 1 for p in recipe["augmentation"].values()
    ):
        raise UserError(
            f"the recipe's augmentation must give a probability from 0 to 1 to each of {', '.join(NNUNET_AUGMENTATION)}; "
            f"it is {recipe['augmentation']}"
        )
