"""Whether predict.sh's outputs are complete: every case there and no other, geometry equal to the input's, labels known.

Usage: python3 check_outputs.py [INPUTS [OUTPUTS]]     default: /workspace/inputs /workspace/outputs
Ends with 0 where all is well, else with 1 and one line for each thing that is not.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

ENDING = ".nii.gz"
TOLERANCE = 1e-3  # mm, for each number of the affine


def known_labels(dataset_json: dict) -> set[int]:
    """The values that a segmentation may have. Regions are written as the values of regions_class_order; ignore never is."""
    if any(isinstance(label, list) and len(label) > 1 for label in dataset_json["labels"].values()):
        return {0, *dataset_json["regions_class_order"]}
    labels = {
        name: label[0] if isinstance(label, list) else label
        for name, label in dataset_json["labels"].items()
    }
    return {label for name, label in labels.items() if name != "ignore"}


def problems_of(image_file: Path, result_file: Path, labels: set[int]) -> Iterator[str]:
    """What is wrong with one result."""
    try:
        image, result = nibabel.load(image_file), nibabel.load(result_file)
        values = np.asanyarray(result.dataobj)
    except Exception as error:  # nibabel raises what its readers stumble on
        yield f"cannot be read ({type(error).__name__}: {error})"
        return
    if result.shape != image.shape:
        yield f"has {result.shape} voxels, the image {image.shape}"
    if not np.allclose(result.affine, image.affine, rtol=0, atol=TOLERANCE):
        yield f"lies elsewhere than the image: affine {result.affine.tolist()}, the image's {image.affine.tolist()}"
    if unknown := sorted(set(np.unique(values).tolist()) - labels):
        yield f"has the labels {unknown[:10]}, the model knows {sorted(labels)}"


def main(arguments: list[str]) -> int:
    inputs, outputs = (
        Path(a)
        for a in (*arguments, *("/workspace/inputs", "/workspace/outputs")[len(arguments) :])
    )
    labels = known_labels(
        json.loads((Path(__file__).resolve().parent / "model" / "dataset.json").read_text())
    )
    images = {
        path.name[: -len("_0000" + ENDING)]: path for path in sorted(inputs.glob("*_0000" + ENDING))
    }
    results = {path.name[: -len(ENDING)]: path for path in sorted(outputs.glob("*" + ENDING))}
    found = [] if images else [f"{inputs} has no CASE_0000{ENDING}"]
    found += [f"{case}{ENDING} is missing in {outputs}" for case in images if case not in results]
    found += [
        f"{case}{ENDING} in {outputs} belongs to no case" for case in results if case not in images
    ]
    found += [
        f"{case}{ENDING} {text}"
        for case in images
        if case in results
        for text in problems_of(images[case], results[case], labels)
    ]
    print(
        "\n".join(found)
        if found
        else f"{len(images)} cases: all there, geometry as the images', labels among {sorted(labels)}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:3]))
