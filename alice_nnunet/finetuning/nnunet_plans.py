"""Read nnU-Net's plans, which are plain data."""

from alice_nnunet.errors import UserError
from alice_nnunet.names import CONFIGURATION


def configuration_of(plans: dict, name: str) -> dict:
    """A configuration of plans with everything that it inherits.

    Raises:
        UserError: there is none of that name, or it is 2D or part of a cascade.
    """
    known = plans["configurations"]
    if name not in known:
        raise UserError(
            f"the plans {plans['plans_name']} have no configuration {name}; they have "
            f"{', '.join(known)}"
        )

    configuration = dict(known[name])
    while parent := configuration.pop("inherits_from", None):
        configuration = {**known[parent], **configuration}

    if len(configuration["patch_size"]) != 3 or configuration.get("previous_stage"):
        raise UserError(
            f"the configuration {name} is 2D or a cascade; the pretrained encoders are for 3D "
            f"volumes, use {CONFIGURATION}"
        )
    return configuration


def dataset_number(name: str) -> int:
    """The ID in DatasetXXX_NAME."""
    return int(name[7:10])


def how_to_replan(plans: dict, weights: str) -> str:
    """A sentence with the commands that make plans for these weights. weights: their path."""
    dataset = dataset_number(plans["dataset_name"])
    return (
        f"Replan: alice-plan -d {dataset} -weights {weights}, then nnUNetv2_preprocess "
        f"-d {dataset} -plans_name AlicePlans -c {CONFIGURATION}, and train with -p AlicePlans"
    )
