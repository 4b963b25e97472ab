"""What alice-demo segments, in whom, and what its fine-tunings start from."""

from dataclasses import dataclass

from alice_nnunet.names import CONFIGURATION

PLANS = "AlicePlans"  # of every task, for both starts


@dataclass(frozen=True)
class Task:
    """The labels of one raw dataset, and its people.

    Attributes:
        name: on screen and in the results.
        number: of the dataset.
        labels: names. In the dataset the first one has the value 1, and so on.
        shipped: for each of the labels, its values in the files that ship with the package.
        training: people who are fine-tuned on.
        test: people whom no step but the prediction sees.
    """

    name: str
    number: int
    labels: tuple[str, ...]
    shipped: tuple[tuple[int, ...], ...]
    training: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def dataset(self) -> str:
        """Name of the dataset's folder."""
        return f"Dataset{self.number:03d}_Demo{self.name.capitalize()}"


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from.

    Attributes:
        name: in the names of files.
        title: on screen.
        trainer: nnU-Net trainer class.
    """

    name: str
    title: str
    trainer: str

    @property
    def model(self) -> str:
        """Name of nnU-Net's results folder."""
        return f"{self.trainer}__{PLANS}__{CONFIGURATION}"


# The files use the numbers of FLARE 2022.
ORGANS = Task(
    name="organs",
    number=101,
    labels=("liver", "spleen", "kidneys", "aorta"),
    shipped=((1,), (3,), (2, 13), (5,)),
    training=("lidc0001", "ts_dicomslab"),
    test=("ts_example",),
)

# In the order of their names, people are trained on and tested by turns.
TUMOURS = Task(
    name="tumours",
    number=102,
    labels=("tumour",),
    shipped=((1,),),
    training=("sts_004", "sts_010", "sts_023", "sts_029", "sts_043", "sts_050"),
    test=("sts_006", "sts_018", "sts_028", "sts_032", "sts_047", "sts_051"),
)

TASKS = (ORGANS, TUMOURS)

PRETRAINED = Start("pretrained", "pretrained encoder", "AliceTrainer")
RANDOM = Start("random", "random weights", "AliceScratchTrainer")
STARTS = (PRETRAINED, RANDOM)
