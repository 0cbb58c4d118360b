"""What can go wrong while data is read in training."""

from __future__ import annotations


class DataError(ValueError):
    """Training data that cannot be had while training; one line, also when it comes out of a data worker, whose
    traceback PyTorch would put in front.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rsplit(f"{type(self).__name__}: ", 1)[-1])


class TooManyCorruptImages(DataError):
    """More unreadable images than allowed."""


class DataUnavailable(DataError):
    """The store that holds the images does not answer; nothing is wrong with them, and none is marked."""
