"""The web page that alice-demo writes: scores, pictures, commands."""

import html
from dataclasses import dataclass
from itertools import groupby

from alice_nnunet.demo.running import Step
from alice_nnunet.demo.scores import Mean, Score, mean_of
from alice_nnunet.demo.tasks import STARTS, TASKS

MATCHED_PEOPLE = ("cptacpda_c3l00189", "crlm1004")  # two abdomens

# File name -> caption.
PICTURES = {
    "prediction.png": (
        "Reference, and prediction from both starts, of the first test person of each task, whom "
        "neither pretraining nor fine-tuning has seen"
    ),
    "matches.png": (
        f"Random points of {MATCHED_PEOPLE[0]} and where the learned matcher finds them in "
        f"{MATCHED_PEOPLE[1]}, with scores; those below the minimum score are no pairs"
    ),
    "pair.png": (
        "Two crops of the same body part in two people, as the matcher pairs them for pretraining"
    ),
    "reconstruction.png": (
        "What the encoder saw of a held-out crop, and how the decoder reconstructed the hidden part"
    ),
    "pretraining.png": "Losses and spreads during pretraining",
    **{
        f"finetuning_{task.name}_{start.name}.png": (
            f"nnU-Net's own progress plot of the fine-tuning for the {task.name}, from "
            f"{start.title}; its pseudo dice is of a person who is trained on"
        )
        for task in TASKS
        for start in STARTS
    },
}

PAGE = """\
<!doctype html>
<html lang=en>
<meta charset=utf-8>
<title>alice-demo</title>
<style>
body {{ font: 16px sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100% }}
figure {{ margin: 2em 0 }}
th {{ text-align: left }}
td, th {{ padding: .2em 1em .2em 0; vertical-align: top }}
code {{ color: #555; font-size: .8em }}
</style>
<h1>alice-demo, encoder {encoder}</h1>
<p>From unlabeled scans to the segmentation of new people in {minutes:.1f} minutes on a CPU. The
same network was fine-tuned twice for each task, with the same plans, seed and number of steps: from
the pretrained encoder, and from random weights.</p>
{words}
<p>This demonstrates every step with a tiny encoder, minutes of training, one seed and few people.
It is not a result: another seed may turn the order round.</p>
<h2>Dice of people whom no training has seen</h2>
<table>
{scores}
</table>
<h2>Pictures</h2>
{pictures}
<h2>What was run (seconds)</h2>
<table>
{steps}
</table>
</html>
"""


@dataclass(frozen=True)
class Outcome:
    """What summary.json and the page tell.

    Attributes:
        encoder: its name.
        seconds: of the demo by the clock.
        cpu_seconds: of the cores.
        means: of each task.
        scores: of all tasks.
        steps: what was run.
    """

    encoder: str
    seconds: float
    cpu_seconds: float
    means: list[Mean]
    scores: list[Score]
    steps: list[Step]


def page(outcome: Outcome) -> str:
    """The HTML of one page."""
    return PAGE.format(
        encoder=html.escape(outcome.encoder),
        minutes=outcome.seconds / 60,
        words="\n".join(f"<p><b>{html.escape(mean.words)}</b></p>" for mean in outcome.means),
        scores="\n".join(score_rows(outcome.scores)),
        pictures="\n".join(figure(name, caption) for name, caption in PICTURES.items()),
        steps="\n".join(step_row for step in outcome.steps for step_row in step_rows(step)),
    )


def score_rows(scores: list[Score]) -> list[str]:
    """Rows of a table: each score, and under those of a task their mean."""
    rows = [row("task", "person", "label", *(start.title for start in STARTS), tag="th")]
    for task, group in groupby(scores, key=task_of):
        of_task = list(group)
        for score in of_task:
            dice = (f"{score.pretrained:.3f}", f"{score.random:.3f}")
            rows.append(row(task, score.person, score.label, *dice))

        mean = mean_of(of_task)
        rows.append(row(task, "mean", "", f"{mean.pretrained:.3f}", f"{mean.random:.3f}", tag="th"))
    return rows


def task_of(score: Score) -> str:
    return score.task


def step_rows(step: Step) -> list[str]:
    """A row with reason and seconds, and one for each command."""
    rows = [row(step.why, step.seconds)]
    for command in step.commands:
        rows.append(f"<tr><td colspan=2><code>{html.escape(command)}</code></td></tr>")
    return rows


def figure(name: str, caption: str) -> str:
    """A picture with its caption."""
    text = html.escape(caption)
    return f'<figure><img src="{name}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def row(*cells: object, tag: str = "td") -> str:
    """One row of a table."""
    columns = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{columns}</tr>"
