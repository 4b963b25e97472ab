"""Check that the outputs of predict.sh are complete and valid.

Every case must have its segmentation and there must be no other; each must have the geometry of its
image and only labels of the model.

Usage: python3 check_outputs.py [INPUTS [OUTPUTS]]     default: /workspace/inputs /workspace/outputs
Exits with 0 if all is well, else with 1 after printing one line for each problem.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

ENDING = ".nii.gz"
TOLERANCE = 1e-3  # mm, for each number of the affine


def main(arguments: list[str]) -> int:
    inputs = Path(arguments[0] if arguments else "/workspace/inputs")
    outputs = Path(arguments[1] if len(arguments) > 1 else "/workspace/outputs")

    dataset_json = Path(__file__).resolve().parent / "model" / "dataset.json"
    labels = known_labels(json.loads(dataset_json.read_text()))

    first_channel = "_0000" + ENDING
    images = {
        path.name.removesuffix(first_channel): path
        for path in sorted(inputs.glob("*" + first_channel))
    }
    results = {path.name.removesuffix(ENDING): path for path in sorted(outputs.glob("*" + ENDING))}

    problems = list(all_problems(inputs, outputs, images, results, labels))
    if problems:
        print("\n".join(problems))
        return 1

    print(
        f"{len(images)} cases: all there, with the geometry of the images and labels among "
        f"{sorted(labels)}"
    )
    return 0


def known_labels(dataset_json: dict) -> set[int]:
    """The values that a segmentation may have: those of the labels, without the ignore label.

    A model of regions writes the values of regions_class_order.
    """
    values = {
        name: value if isinstance(value, list) else [value]
        for name, value in dataset_json["labels"].items()
    }
    if any(len(value) > 1 for value in values.values()):
        return {0, *dataset_json["regions_class_order"]}
    return {value[0] for name, value in values.items() if name != "ignore"}


def all_problems(
    inputs: Path,
    outputs: Path,
    images: dict[str, Path],
    results: dict[str, Path],
    labels: set[int],
) -> Iterator[str]:
    """One line for each problem. images, results: files by case."""
    if not images:
        yield f"{inputs} has no CASE_0000{ENDING}"

    for case in images:
        if case not in results:
            yield f"{case}{ENDING} is missing in {outputs}"
    for case in results:
        if case not in images:
            yield f"{case}{ENDING} in {outputs} belongs to no case"

    for case, image in images.items():
        if case in results:
            for problem in problems_of(image, results[case], labels):
                yield f"{case}{ENDING} {problem}"


def problems_of(image_file: Path, result_file: Path, labels: set[int]) -> Iterator[str]:
    """What is wrong with one segmentation."""
    try:
        image = nibabel.load(image_file)
        result = nibabel.load(result_file)
        values = np.asanyarray(result.dataobj)
    except Exception as error:  # nibabel raises whatever its readers stumble on
        yield f"cannot be read ({type(error).__name__}: {error})"
        return

    if result.shape != image.shape:
        yield f"has {result.shape} voxels, the image {image.shape}"

    if not np.allclose(result.affine, image.affine, rtol=0, atol=TOLERANCE):
        yield (
            f"lies elsewhere than the image: affine {result.affine.tolist()}, "
            f"the image's {image.affine.tolist()}"
        )

    unknown = sorted(set(np.unique(values).tolist()) - labels)
    if unknown:
        yield f"has the labels {unknown[:10]}, the model knows {sorted(labels)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:3]))
