"""Which classes samples are asked for, and what a result says of them.

Legend: Y classes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.errors import UserError
from sampling.conditions import ClassConditions, class_number
from sampling.trained_models import class_names_of, trained_classes
from scoring.result_lines import BY_FREQUENCY
from scoring.scoring_data import ScoringData

UNEQUAL = 2.0  # a class with that many times its equal share of the images is worth a warning


def find_conditions(asked: str, checkpoint: Path, num_classes: int, data: ScoringData) -> ClassConditions:
    """The classes that `--classes` asks for (one of `sampling.choices.CLASSES`), of a model with so many.

    Raises:
        UserError: the model has no classes, or was trained on another number of them.
    """
    if num_classes < 2:
        if asked != "seen":
            raise UserError(f"--classes {asked} needs a class-conditional model: this one has no classes")
        return ClassConditions(num_classes)
    if asked == "all":
        return ClassConditions(num_classes)
    counts = trained_classes(checkpoint)
    if counts is None and asked == "seen":
        return ClassConditions(num_classes)
    if counts is None:
        counts = torch.bincount(data.split("train").labels_N, minlength=num_classes).tolist()
    if len(counts) != num_classes:
        raise UserError(f"{checkpoint} was trained on {len(counts)} classes, the model has {num_classes}")
    return ClassConditions.of_counts(torch.tensor(counts), by_frequency=asked == "frequencies")


def one_class(asked: str, checkpoint: Path, num_classes: int) -> ClassConditions:
    """The class that `--class` names, of a model with so many.

    Raises:
        UserError: the model has no classes, or none of that name or number.
    """
    if num_classes < 2:
        raise UserError(f"--class {asked} needs a class-conditional model: this one has no classes")
    number = class_number(asked, class_names_of(checkpoint), num_classes)
    return ClassConditions(num_classes, torch.tensor([number]))


def class_facts(conditions: ClassConditions) -> dict[str, object]:
    """What a result line says of the classes: nothing where samples have all of them in turn."""
    asked: dict[str, object] = {} if conditions.classes is None else {"num_classes": conditions.num}
    return asked if conditions.counts is None else {"classes": BY_FREQUENCY, **asked}


def unequal_classes(conditions: ClassConditions, data: ScoringData) -> list[str]:
    """A warning where every class is drawn equally often and the images of the data set are of few."""
    train = data.split("train")
    if conditions.num_classes < 2 or conditions.counts is not None or not conditions.fits(train.num_classes):
        return []
    count_Y = torch.bincount(train.labels_N)
    share, label = count_Y.max().item() / len(train), count_Y.argmax().item()
    if share < UNEQUAL / train.num_classes:
        return []
    name = train.class_names[int(label)]
    return [
        f"{share:.0%} of the training images are of class {name}, samples have every class equally often: "
        "--classes frequencies draws them as the images are"
    ]
