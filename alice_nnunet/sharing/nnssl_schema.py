"""The schema of nnssl's AdaptationPlan, and whether a checkpoint's plan follows it.

The fields are those of the dataclasses AdaptationPlan, ArchitecturePlans, Plan and
ConfigurationPlan in MIC-DKFZ/nnssl, commit 7044864 (adaptation_planning/adaptation_plan.py,
experiment_planning/experiment_planners/plan.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from alice_nnunet.errors import UserError

# The schema is written as data. A field is
#   a type, or a tuple of types of which it has one;
#   a set of values of which it is one;
#   a list [kind of the entries], or [kind, length];
#   a dictionary with exactly these fields, or with any names where the only one is "*".
NUMBER = (int, float)
NONE = type(None)
CONFIGURATION = {
    "data_identifier": str,
    "preprocessor_name": str,
    "spacing_style": {"onemmiso", "median", "noresample"},
    "normalization_schemes": [str],
    "use_mask_for_norm": [bool],
    "resampling_fn_data": str,
    "resampling_fn_data_kwargs": {"*": object},
    "resampling_fn_mask": str,
    "resampling_fn_mask_kwargs": {"*": object},
    "spacing": [NUMBER, 3],
    "patch_size": [int, 3],
}
ADAPTATION_PLAN = {
    # nnssl reads arch_kwargs as those of its own CNNs, whatever the class is: null for others
    "architecture_plans": {
        "arch_class_name": str,
        "arch_kwargs": NONE,
        "arch_kwargs_requiring_import": NONE,
    },
    "pretrain_plan": {
        "dataset_name": str,
        "plans_name": str,
        "original_median_spacing_after_transp": [NUMBER, 3],
        "image_reader_writer": str,
        "transpose_forward": [int, 3],
        "transpose_backward": [int, 3],
        "configurations": {"*": CONFIGURATION},
        "experiment_planner_used": str,
    },
    "pretrain_num_input_channels": int,
    "recommended_downstream_patchsize": [int, 3],
    "key_to_encoder": str,
    "key_to_stem": str,
    "keys_to_in_proj": [str],
    "key_to_lpe": (str, NONE),
}


def check_adaptation_plan(plan: Any, weights: dict[str, Tensor], path: Path) -> None:
    """Check a checkpoint's adaptation_plan against nnssl's schema and against the weights.

    Args:
        plan: the adaptation_plan.
        weights: tensors of the encoder.
        path: of the checkpoint, for the message.

    Raises:
        UserError: lists every wrong field.
    """
    wrong = list(wrong_fields(plan, ADAPTATION_PLAN, "adaptation_plan"))
    if not wrong:
        wrong = list(wrong_keys(plan, weights))

    if wrong:
        raise UserError(
            f"the adaptation_plan in {path} does not follow nnssl's schema, nothing was "
            f"written: {'; '.join(wrong)}"
        )


def wrong_fields(value: object, wanted: object, name: str) -> Iterator[str]:
    """Describe everything in value, called name, that differs from the schema wanted."""
    if isinstance(wanted, dict):
        yield from wrong_dictionary(value, wanted, name)
    elif isinstance(wanted, list):
        yield from wrong_list(value, wanted, name)

    elif isinstance(wanted, set):
        if value not in wanted:
            yield f"{name} is {value!r} instead of one of {', '.join(sorted(wanted))}"

    else:
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        if object not in kinds and type(value) not in kinds:
            yield f"{name} is {value!r} instead of {' or '.join(kind.__name__ for kind in kinds)}"


def wrong_dictionary(value: object, wanted: dict, name: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{name} is {value!r} instead of a dictionary"
        return

    fields = dict.fromkeys(value, wanted["*"]) if "*" in wanted else wanted
    yield from (f"{name}.{key} is missing" for key in fields if key not in value)
    yield from (f"{name}.{key} is unknown" for key in value if key not in fields)

    for key in fields.keys() & value.keys():
        yield from wrong_fields(value[key], fields[key], f"{name}.{key}")


def wrong_list(value: object, wanted: list, name: str) -> Iterator[str]:
    kind, *length = wanted
    if not isinstance(value, list) or (length and len(value) != length[0]):
        expected = f"a list of {length[0]}" if length else "a list"
        yield f"{name} is {value!r} instead of {expected}"
        return

    for index, entry in enumerate(value):
        yield from wrong_fields(entry, kind, f"{name}[{index}]")


def wrong_keys(plan: dict, weights: dict[str, Tensor]) -> Iterator[str]:
    """Describe the keys of a plan that lead to no tensor, and a wrong number of channels."""
    for field in ("key_to_encoder", "key_to_stem"):
        if not any(name.startswith(f"{plan[field]}.") for name in weights):
            yield f"{field} is {plan[field]!r}, and no tensor's name begins with it"

    stated = plan["pretrain_num_input_channels"]
    for key in plan["keys_to_in_proj"]:
        if f"{key}.weight" not in weights:
            yield f"keys_to_in_proj has {key!r}, and there is no tensor {key}.weight"
            continue

        channels = weights[f"{key}.weight"].shape[1]
        if channels != stated:
            yield f"pretrain_num_input_channels is {stated}, and {key}.weight takes {channels}"

    if plan["key_to_lpe"] is not None and plan["key_to_lpe"] not in weights:
        yield f"key_to_lpe is {plan['key_to_lpe']!r}, and there is no such tensor"
