"""The schema of nnssl's AdaptationPlan, and whether a checkpoint's plan keeps to it.

Fields are those of the dataclasses AdaptationPlan, ArchitecturePlans, Plan and ConfigurationPlan in MIC-DKFZ/nnssl, commit
7044864 (adaptation_planning/adaptation_plan.py, experiment_planning/experiment_planners/plan.py).
"""

from collections.abc import Iterator

from torch import Tensor

from alice_nnunet.errors import UserError

NUMBER, NONE = (int, float), type(None)
# a field's value is of a type or of one of several; one of a set; a list, of a given length where a number follows; a
# dictionary with exactly these fields, or with any names where the one given is *
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
    # nnssl reads arch_kwargs as those of its own CNNs, whatever the class is: for every other network they are null
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


def wrong_fields(value: object, wanted: object, name: str) -> Iterator[str]:
    """What in value, called name, is not as the schema wants it."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield f"{name} is {value!r} instead of a dictionary"
            return
        fields = {key: wanted["*"] for key in value} if "*" in wanted else wanted
        yield from (f"{name}.{key} is missing" for key in fields if key not in value)
        yield from (f"{name}.{key} is unknown" for key in value if key not in fields)
        for key in fields.keys() & value.keys():
            yield from wrong_fields(value[key], fields[key], f"{name}.{key}")
    elif isinstance(wanted, list):
        kind, *length = wanted
        if not isinstance(value, list) or length and len(value) != length[0]:
            yield f"{name} is {value!r} instead of a list{f' of {length[0]}' if length else ''}"
            return
        for index, entry in enumerate(value):
            yield from wrong_fields(entry, kind, f"{name}[{index}]")
    elif isinstance(wanted, set):
        if value not in wanted:
            yield f"{name} is {value!r} instead of one of {', '.join(sorted(wanted))}"
    else:
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        if object not in kinds and type(value) not in kinds:
            yield f"{name} is {value!r} instead of {' or '.join(kind.__name__ for kind in kinds)}"


def wrong_keys(plan: dict, weights: dict[str, Tensor]) -> Iterator[str]:
    """Keys of a plan, right in form, that lead to nothing in the weights, and a channel count that is not theirs."""
    for field in ("key_to_encoder", "key_to_stem"):
        if not any(name.startswith(f"{plan[field]}.") for name in weights):
            yield f"{field} is {plan[field]!r}, and no tensor's name begins with it"
    for key in plan["keys_to_in_proj"]:
        if f"{key}.weight" not in weights:
            yield f"keys_to_in_proj has {key!r}, and there is no tensor {key}.weight"
        elif (channels := weights[f"{key}.weight"].shape[1]) != plan["pretrain_num_input_channels"]:
            yield f"pretrain_num_input_channels is {plan['pretrain_num_input_channels']}, and {key}.weight takes {channels}"
    if plan["key_to_lpe"] is not None and plan["key_to_lpe"] not in weights:
        yield f"key_to_lpe is {plan['key_to_lpe']!r}, and there is no such tensor"


def check_adaptation_plan(plan: object, weights: dict[str, Tensor], path: str) -> None:
    """Raise UserError that lists every field of a checkpoint's nnssl_adaptation_plan that breaks nnssl's schema or that the
    weights do not bear out. path: of the checkpoint."""
    wrong = list(wrong_fields(plan, ADAPTATION_PLAN, "nnssl_adaptation_plan")) or list(
        wrong_keys(plan, weights)
    )
    if wrong:
        raise UserError(
            f"the nnssl_adaptation_plan in {path} is not in nnssl's schema, nothing was written: {'; '.join(wrong)}"
        )
