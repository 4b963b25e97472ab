"""The most similar scans of a folder, and a web page that shows them."""

import base64
import csv
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

from alice_nnunet.features.pictures import ShownScan
from alice_nnunet.files import replacing
from alice_nnunet.pictures import show_coronal

PAGE = """\
<!doctype html>
<html lang=en>
<meta charset=utf-8>
<title>alice-features: similar scans</title>
<style>
body {{ font: 14px sans-serif; margin: 2em }}
figure {{ display: inline-block; margin: .3em; text-align: center }}
img {{ height: 150px }}
section {{ border-top: 1px solid #ccc; white-space: nowrap; overflow-x: auto }}
.query {{ background: #eef; padding: .3em }}
</style>
<h1>Similar scans</h1>
<p>{scans} scans, encoded by {weights}. On the left of each row the scan, then its nearest ones,
with the cosine of the angle between their vectors less the mean of all (1: the same direction).</p>
{rows}
</html>
"""


@dataclass(frozen=True)
class Neighbour:
    """A scan that resembles another one.

    Attributes:
        name: of the scan.
        similarity: cosine between the centred vectors, -1 to 1.
    """

    name: str
    similarity: float


def nearest_scans(vectors: dict[str, np.ndarray], number: int) -> dict[str, list[Neighbour]]:
    """Of every scan, the nearest others, most similar first.

    The mean of all vectors is taken off before: what all scans share says nothing.

    Args:
        vectors: (channels,) of each scan, at least two scans.
        number: of neighbours; fewer where there are fewer scans.
    """
    names = list(vectors)
    stacked = np.stack(list(vectors.values())).astype(np.float64)
    centred = stacked - stacked.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    centred = centred / np.maximum(lengths, 1e-12)

    wanted = min(number, len(names) - 1)
    search = NearestNeighbors(n_neighbors=wanted, metric="cosine", algorithm="brute")
    distances, indices = search.fit(centred).kneighbors()  # without the scan itself

    found = {}
    for name, of_scan, others in zip(names, distances, indices):
        found[name] = [Neighbour(names[i], 1 - float(d)) for d, i in zip(of_scan, others)]
    return found


def write_neighbours_csv(path: Path, neighbours: dict[str, list[Neighbour]]) -> None:
    """A line for each scan and each of its neighbours."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("scan", "rank", "neighbour", "similarity"))
        for name, of_scan in neighbours.items():
            for rank, other in enumerate(of_scan, 1):
                writer.writerow((name, rank, other.name, f"{other.similarity:.6f}"))


def neighbours_page(
    neighbours: dict[str, list[Neighbour]], shown: dict[str, ShownScan], weights: str
) -> str:
    """One HTML page with a row for each scan; its thumbnails are inside.

    Args:
        neighbours: of each scan.
        shown: middle slices of each scan.
        weights: what the scans were encoded by.
    """
    rules = []
    for number, scan in enumerate(shown.values()):
        rules.append(f".scan{number} {{ content: url({thumbnail(scan)}) }}")
    number_of = {name: number for number, name in enumerate(shown)}

    rows = []
    for name, of_scan in neighbours.items():
        figures = [picture(number_of[name], name, "", "query")]
        for other in of_scan:
            text = f"{other.similarity:.3f}"
            figures.append(picture(number_of[other.name], other.name, text, "neighbour"))
        rows.append("<section>" + "\n".join(figures) + "</section>")

    style = "<style>\n" + "\n".join(rules) + "\n</style>\n"
    return PAGE.format(
        scans=len(neighbours), weights=html.escape(weights), rows=style + "\n".join(rows)
    )


def picture(number: int, name: str, text: str, kind: str) -> str:
    """A thumbnail with its caption. Each thumbnail is in the page once, as a rule of its style."""
    caption = " ".join(part for part in (html.escape(name), text) if part)
    return (
        f'<figure class={kind}><img class=scan{number} alt="{html.escape(name)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def thumbnail(scan: ShownScan) -> str:
    """The middle coronal slice as a PNG in a data URL."""
    depth, _, width = (n * s for n, s in zip(scan.size, scan.spacing))
    figure = Figure(figsize=(2 * width / max(depth, 1), 2))
    axis = figure.add_axes((0, 0, 1, 1))
    show_coronal(axis, scan.coronal.astype(np.float32), scan.spacing)

    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=75, facecolor="black")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
