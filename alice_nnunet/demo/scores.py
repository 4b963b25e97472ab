"""Dice of the test people after both fine-tunings, and what follows from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alice_nnunet.demo.datasets import canonical
from alice_nnunet.demo.tasks import PRETRAINED, RANDOM, STARTS, Start, Task
from alice_nnunet.evaluation.scores import dice
from alice_nnunet.pictures import Segmented

WINDOW = (-125.0, 255.0)  # HU, of the pictures
SAME = 0.005  # a difference of two means below which neither start is called ahead


@dataclass(frozen=True)
class Score:
    """Dice of one label in one test person, 0 to 1, after both fine-tunings.

    Attributes:
        task: its name.
        person: its name.
        label: its name.
        pretrained: from the pretrained encoder.
        random: from random weights.
    """

    task: str
    person: str
    label: str
    pretrained: float
    random: float


@dataclass(frozen=True)
class Mean:
    """Mean Dice of a task, over its labels and people.

    Attributes:
        task: its name.
        pretrained: from the pretrained encoder.
        random: from random weights.
        ahead: in how many of the scores the pretrained encoder is ahead.
        behind: in how many of them random weights are ahead.
        scores: how many there are.
    """

    task: str
    pretrained: float
    random: float
    ahead: int
    behind: int
    scores: int

    @property
    def words(self) -> str:
        """The result in one or two sentences."""
        difference = self.pretrained - self.random
        if abs(difference) < SAME:
            outcome = "Neither is ahead"
        elif difference > 0:
            outcome = f"The {PRETRAINED.title} is ahead by {difference:.3f}"
        else:
            outcome = f"{RANDOM.title.capitalize()} are ahead by {-difference:.3f}"

        return (
            f"{self.task}: mean Dice {self.pretrained:.3f} from the {PRETRAINED.title}, "
            f"{self.random:.3f} from {RANDOM.title}. {outcome}. Of {self.scores} scores, "
            f"pretraining makes {self.ahead} higher and {self.behind} lower."
        )


def predictions(out: Path, task: Task, start: Start) -> Path:
    """Folder of the predictions of a fine-tuning. out: folder of the demo."""
    return out / "predictions" / f"{task.name}_{start.name}"


def scores_of(out: Path, raw: Path, task: Task) -> list[Score]:
    """The scores of a task, person by person.

    Args:
        out: folder of the demo.
        raw: folder of its raw datasets.
        task: whose predictions are there.
    """
    scores = []
    for person in task.test:
        shown = segmented(out, raw, task, person)
        for number, label in enumerate(task.labels, 1):
            pretrained, random = (
                dice(shown.predicted[start.title] == number, shown.reference == number)
                for start in STARTS
            )
            scores.append(Score(task.name, person, label, round(pretrained, 4), round(random, 4)))
    return scores


def mean_of(scores: list[Score]) -> Mean:
    """The mean of scores of the same task."""
    pretrained = np.array([score.pretrained for score in scores])
    random = np.array([score.random for score in scores])
    return Mean(
        task=scores[0].task,
        pretrained=round(float(pretrained.mean()), 4),
        random=round(float(random.mean()), 4),
        ahead=int((pretrained > random).sum()),
        behind=int((pretrained < random).sum()),
        scores=len(scores),
    )


def segmented(out: Path, raw: Path, task: Task, person: str) -> Segmented:
    """A test person with the reference and what both fine-tunings predict.

    Args:
        out: folder of the demo.
        raw: folder of its raw datasets.
        task: of the person.
        person: of the test people.
    """
    hounsfield, spacing = canonical(raw / task.dataset / "imagesTs" / f"{person}_0000.nii.gz")
    reference, _ = canonical(raw / task.dataset / "labelsTs" / f"{person}.nii.gz")

    predicted = {}
    for start in STARTS:
        labels, _ = canonical(predictions(out, task, start) / f"{person}.nii.gz")
        predicted[start.title] = labels

    floor, top = WINDOW
    image = np.clip((hounsfield - floor) / (top - floor), 0, 1)
    return Segmented(person, image, spacing, reference, predicted, list(task.labels))
