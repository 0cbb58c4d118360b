"""What a wrong setting or call raises in the drop-in modules."""

from __future__ import annotations


class UsageError(ValueError, AssertionError):
    """A setting or call that is refused. The original refuses by assertion, so programs may catch that too."""


def require(condition: bool, message: str) -> None:
    """Raise `UsageError` with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)
