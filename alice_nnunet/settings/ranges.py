"""Checks of the values of settings: messages name the setting, what is allowed and the value."""


def require_positive(settings: object, *names: str) -> None:
    """Raise ValueError where one of these attributes is 0 or less."""
    for name in names:
        value = getattr(settings, name)
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def require_share(settings: object, *names: str) -> None:
    """Raise ValueError where one of these attributes is outside [0, 1]."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_not_negative(settings: object, *names: str) -> None:
    """Raise ValueError where one of these attributes is negative. None is allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def require_one_of(settings: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError where this attribute is none of the allowed words."""
    value = getattr(settings, name)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def require_block(settings: object, name: str) -> None:
    """Raise ValueError where this attribute is not three whole numbers above 0."""
    value = getattr(settings, name)
    if len(value) != 3 or any(not isinstance(edge, int) or edge < 1 for edge in value):
        raise ValueError(f"{name} must be three whole numbers above 0, got {value}")
