"""What a wrong setting or call raises in the drop-in modules."""

from __future__ import annotations

from typing import Any

from rqstack.arguments import check_count, check_counts
from rqstack.quantizers.arithmetic.signatures import Called, checks_arguments


class UsageError(ValueError, AssertionError):
    """A setting or call that is refused. The original refuses by assertion, so programs may catch that too."""


def require(condition: bool, message: str) -> None:
    """Raise `UsageError` with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def check_sizes(**sizes: Any) -> None:
    """`UsageError` for a size by name that is no whole number of at least 1, or no list of such; None is none."""
    for name, value in sizes.items():
        try:
            if isinstance(value, (list, tuple)):
                check_counts(name, value)
            elif value is not None:
                check_count(name, value)
        except ValueError as error:
            raise UsageError(str(error)) from None


def checks_settings(called: Called) -> Called:
    """`checks_arguments` with `UsageError`."""
    return checks_arguments(called, UsageError)
