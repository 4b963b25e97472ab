"""The web page that alice-demo writes: scores, pictures, commands."""

import html

from alice_nnunet.demo.datasets import TEST_PERSON

MATCHED_PEOPLE = ("cptacpda_c3l00189", "crlm1004")  # two abdomens

# File name -> caption.
PICTURES = {
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
    "finetuning.png": "nnU-Net's own progress plot of the fine-tuning",
    "prediction.png": (
        f"Prediction and reference for {TEST_PERSON}, whom neither pretraining nor fine-tuning "
        f"has seen"
    ),
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
td {{ padding: .2em 1em .2em 0; vertical-align: top }}
code {{ color: #555; font-size: .8em }}
</style>
<h1>alice-demo, encoder {encoder}</h1>
<p>From unlabeled scans to the segmentation of a new person in {minutes:.1f} minutes on a CPU. This
demonstrates that every step works, with a tiny encoder and minutes of training; it is not a
result.</p>
<h2>Dice of {person}</h2>
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


def page(summary: dict) -> str:
    """The HTML of one page. summary: content of summary.json."""
    scores = [row(name, f"{score:.3f}") for name, score in summary["dice"].items()]

    steps = []
    for step in summary["steps"]:
        steps.append(row(step["why"], step["seconds"]))
        steps.append(f"<tr><td colspan=2><code>{html.escape(step['command'])}</code></td></tr>")

    pictures = []
    for name, caption in PICTURES.items():
        text = html.escape(caption)
        pictures.append(
            f'<figure><img src="{name}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )

    return PAGE.format(
        encoder=html.escape(summary["encoder"]),
        minutes=summary["seconds"] / 60,
        person=TEST_PERSON,
        scores="\n".join(scores),
        pictures="\n".join(pictures),
        steps="\n".join(steps),
    )


def row(*cells: object) -> str:
    """One row of a table."""
    columns = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    return f"<tr>{columns}</tr>"
