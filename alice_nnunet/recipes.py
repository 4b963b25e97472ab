"""How each network is fine-tuned, as data (Alice, Table 8). The plans carry a copy, so every number can be changed there."""

from alice_nnunet.errors import UserError

RECIPES = {
    "vit": {
        "optimizer": "AdamW", "learning_rate": 1e-4, "weight_decay": 1e-5, "momentum": 0.9,
        "schedule": "cosine", "warmup_epochs": 50, "epochs": 1000,
        "iterations_per_epoch": 250, "val_iterations_per_epoch": 50,  # nnU-Net's
        "batch_size": 8, "patch_size": [96, 96, 96],
    },
    "swin": {
        "optimizer": "AdamW", "learning_rate": 4e-4, "weight_decay": 1e-5, "momentum": 0.9,
        "schedule": "cosine", "warmup_epochs": 50, "epochs": 1000,
        "iterations_per_epoch": 250, "val_iterations_per_epoch": 50,
        "batch_size": 8, "patch_size": [96, 96, 96],
    },
    "nnformer": {
        "optimizer": "SGD", "learning_rate": 1e-2, "weight_decay": 3e-5, "momentum": 0.99,
        "schedule": "poly", "warmup_epochs": 40, "epochs": 1000,
        "iterations_per_epoch": 250, "val_iterations_per_epoch": 50,
        "batch_size": 8, "patch_size": [96, 128, 128],
    },
}
OPTIMIZERS, SCHEDULES = ("AdamW", "SGD"), ("cosine", "poly")  # what the trainer knows
OF_THE_CONFIGURATION = ("batch_size", "patch_size")  # they are nnU-Net's own entries in the plans


def training_recipe(recipe: dict, epochs: int | None = None, iterations: int | None = None,
                    learning_rate: float | None = None) -> dict:
    """The part of a recipe that the trainer follows, changed where asked.

    epochs: the warm-up keeps its share of them. iterations: for each epoch; validation keeps its share, at least 1.
    learning_rate: at the end of the warm-up.
    """
    training = {key: value for key, value in recipe.items() if key not in OF_THE_CONFIGURATION}
    if learning_rate is not None:
        training |= {"learning_rate": learning_rate}
    if epochs is not None:
        training |= {"epochs": epochs, "warmup_epochs": round(recipe["warmup_epochs"] * epochs / recipe["epochs"])}
    if iterations is not None:
        share = recipe["val_iterations_per_epoch"] / recipe["iterations_per_epoch"]
        training |= {"iterations_per_epoch": iterations, "val_iterations_per_epoch": max(1, round(iterations * share))}
    return training


def check_recipe(recipe: dict) -> None:
    """Raise UserError for a recipe, as plans hold it, that the trainer cannot follow to the letter."""
    expected = {key for key in RECIPES["vit"] if key not in OF_THE_CONFIGURATION}
    if set(recipe) != expected:
        raise UserError(f"the recipe in the plans must have exactly {', '.join(sorted(expected))}; "
                        f"it has {', '.join(sorted(recipe))}")
    for key, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if recipe[key] not in known:
            raise UserError(f"the recipe in the plans asks for {key} {recipe[key]!r}; known: {', '.join(known)}")
    if not 0 <= recipe["warmup_epochs"] < recipe["epochs"]:
        raise UserError(f"the recipe's warm-up must be shorter than the training, got {recipe['warmup_epochs']} of "
                        f"{recipe['epochs']} epochs")
