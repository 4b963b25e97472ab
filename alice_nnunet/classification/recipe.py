"""The settings of a classification: preprocessing, optimizer, schedule (Alice, B.2 and B.3)."""

from dataclasses import asdict, dataclass, fields

from alice_nnunet.errors import UserError
from alice_nnunet.settings.ranges import (
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
)
from alice_nnunet.settings.reading import OptionalValue, given_settings


@dataclass(frozen=True)
class ClassificationRecipe:
    """What a training does, beside its weights and its data.

    Attributes:
        size: voxels (z, y, x) that every scan is resized to.
        window: bottom and top in HU, which become 0 and 1.
        iterations: steps of a run.
        warmup_iterations: of them, with a rising learning rate.
        batch_size: scans of a step.
        lr: highest learning rate.
        momentum: AdamW's first beta.
        weight_decay: of AdamW.
        validate_every: steps between two looks at the validation AUC.
        augment: rotation, scaling, flips, noise, blur, brightness, contrast, low resolution.
        class_weights: of the loss: none, or balanced (the inverse of the frequency of a class).
        frozen: train the linear layer alone (linear probe).
        workers: processes that augment. Default: none on a CPU, else as many as -np by default.
    """

    size: tuple[int, int, int] = (64, 128, 128)
    window: tuple[float, float] = (-1000.0, 400.0)
    iterations: int = 10_000
    warmup_iterations: int = 400
    batch_size: int = 8
    lr: float = 5e-5
    momentum: float = 0.9
    weight_decay: float = 1e-5
    validate_every: int = 250
    augment: bool = True
    class_weights: str = "none"
    frozen: bool = False
    workers: int | None = None

    def __post_init__(self):
        require_positive(self, "iterations", "batch_size", "lr", "validate_every")
        require_not_negative(self, "warmup_iterations", "weight_decay", "workers")
        require_share(self, "momentum")
        require_one_of(self, "class_weights", ("none", "balanced"))
        if self.momentum == 1:
            raise ValueError("momentum must be under 1")
        if self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"warmup_iterations must be under iterations, got {self.warmup_iterations} of "
                f"{self.iterations}"
            )
        if min(self.size) <= 0:
            raise ValueError(f"size must be positive, got {self.size}")
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window must rise, got {self.window}")


def read_recipe(assignments: list[str]) -> ClassificationRecipe:
    """The recipe with the settings of the command line.

    Raises:
        UserError: a name does not exist, or a value is wrong.
    """
    known = {field.name: field.default for field in fields(ClassificationRecipe)}
    known["workers"] = OptionalValue(0)
    given = given_settings(None, assignments, known, ())
    try:
        return ClassificationRecipe(**given)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--set: {error}") from None


def recipe_from(content: dict) -> ClassificationRecipe:
    """The recipe that a file holds as plain values, see as_plain."""
    values = {**content, "size": tuple(content["size"]), "window": tuple(content["window"])}
    return ClassificationRecipe(**values)


def as_plain(recipe: ClassificationRecipe) -> dict:
    """Plain values, lists in place of tuples, as they come back from JSON."""
    values = asdict(recipe)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
