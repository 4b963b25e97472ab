"""Names of tensors, ours and those of a published network.

Rules are pairs (old, new) of the beginnings of names; what follows a beginning stays.
"""

from collections.abc import Sequence

Rules = Sequence[tuple[str, str]]


def rename(name: str, rules: Rules, network: str, whole: str | None = None) -> str:
    """Replace the beginning of a name by the first rule that fits.

    Args:
        name: of a tensor, or the end of such a name.
        rules: see above.
        network: its name for the error message.
        whole: the whole name for the error message, if `name` is only its end.

    Raises:
        ValueError: no rule fits.
    """
    for old, new in rules:
        if name.startswith(old):
            return new + name[len(old) :]
    raise ValueError(f"{whole or name} is not a tensor of {network}")


def inverse(rules: Rules) -> Rules:
    """The rules for the way back."""
    return [(new, old) for old, new in rules]
