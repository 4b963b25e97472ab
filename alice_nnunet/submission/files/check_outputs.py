"""Check that the outputs of predict.sh are complete and valid.

Every case must have its segmentation and there must be no other; each must have the geometry of its
image, for programs that read it by nibabel and by ITK, and only labels of the model.

Usage: python3 check_outputs.py [INPUTS [OUTPUTS]]     default: /workspace/inputs /workspace/outputs
Exits with 0 if all is well, else with 1 after printing one line for each problem.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

ENDING = ".nii.gz"
TOLERANCE = 1e-3  # mm, for each number of the affine
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from the axes of ITK, which run to L, P and S


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


def problems_of_place(
    image_file: Path, image: nibabel.Nifti1Image, result_file: Path, result: nibabel.Nifti1Image
) -> Iterator[str]:
    """Whether a segmentation lies on its image, for programs that use nibabel and for ITK."""
    try:
        of_image = affine_by_itk(image_file)
        of_result = affine_by_itk(result_file)
    except RuntimeError as error:
        yield f"cannot be read by ITK ({str(error).strip().splitlines()[-1]})"
        return

    # an image whose header leaves a choice may have been read in any of these ways
    places = [image.affine, of_image]
    if not image.header["sform_code"] and not image.header["qform_code"]:
        places.append(np.diag([*image.header.get_zooms()[:3], 1.0]))

    if not any(is_close(result.affine, place) for place in places):
        yield (
            f"lies elsewhere than the image: affine {result.affine.tolist()}, "
            f"the image's {image.affine.tolist()}"
        )
    elif not is_close(of_result, result.affine):
        yield (
            f"lies elsewhere for ITK (3D Slicer, ITK-SNAP) than for nibabel: affine "
            f"{of_result.tolist()} and {result.affine.tolist()}; its header's two forms "
            f"contradict each other"
        )


def is_close(first: np.ndarray, second: np.ndarray) -> bool:
    return np.allclose(first, second, rtol=0, atol=TOLERANCE)


def affine_by_itk(path: Path) -> np.ndarray:
    """The affine, (4, 4) to mm in RAS, that ITK reads from a header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection()[:9], (3, 3))
    affine[:3, :3] = direction * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return RAS @ affine


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

    yield from problems_of_place(image_file, image, result_file, result)

    unknown = sorted(set(np.unique(values).tolist()) - labels)
    if unknown:
        yield f"has the labels {unknown[:10]}, the model knows {sorted(labels)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:3]))
