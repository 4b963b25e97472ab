"""What is wrong or worth knowing, found one by one: an item that cannot be read costs no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from alice_nnunet.errors import UserError


@dataclass
class Findings:
    """Sentences, each with what to do.

    Attributes:
        problems: something that would end a command.
        notes: something to know, or to go on with.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Make an error of the block a problem, and go on after it. what: is read there."""
        try:
            yield
        except UserError as error:
            self.problems.append(str(error))
        except Exception as error:  # whatever a damaged file raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self.problems.append(f"{what} cannot be read ({reason})")
