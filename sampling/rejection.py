"""Rejection sampling: of many candidates per condition, keep those that show it best.

The judge is a classifier (how clearly it sees the class) or CLIP (how well the image fits its caption).

Legend: B batch, C channels, H W image (code grid in codes), D code depth, N kept samples, M candidates.

Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, NeurIPS 2019; Lee et al., CVPR 2022, Table 2 (the
rows with an acceptance rate).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation.networks.class_judge import ClassJudge
from evaluation.protocol import balanced_conditions, shard_indices, to_uint8
from runtime import distributed
from sampling.sampler import Sampler


@dataclass(frozen=True)
class RejectionPlan:
    """How many candidates there are, and of which classes; captions count as classes, one each.

    The kept samples have the classes of `balanced_conditions`; a class with n of them gets ceil(n / keep) candidates.
    Candidate j has class j mod `num_classes`; its noise belongs to the number j, like that of any sample.
    """

    num_samples: int
    num_classes: int
    keep: float

    def __post_init__(self) -> None:
        self.check_keep(self.keep)

    @staticmethod
    def check_keep(keep: float) -> None:
        """ValueError for a share that cannot be kept."""
        if not 0 < keep <= 1:
            raise ValueError(f"--reject-keep {keep} must be above 0 and at most 1")

    @property
    def kept_per_class(self) -> list[int]:
        """n of every class."""
        return torch.bincount(
            balanced_conditions(self.num_samples, self.num_classes), minlength=self.num_classes
        ).tolist()

    def candidates(self) -> Tensor:
        """Numbers of all candidates, (M,) int64, ascending."""
        per_class = [math.ceil(round(kept / self.keep, 9)) for kept in self.kept_per_class]
        numbers = [torch.arange(count) * self.num_classes + label for label, count in enumerate(per_class)]
        return torch.cat(numbers).sort().values

    def select(self, candidate_M: Tensor, score_M: Tensor) -> tuple[Tensor, Tensor]:
        """The best of every class: candidate numbers (N,) and the sample number 0..N-1 that each becomes.

        Among equal scores the lower number wins, so that the result depends on nothing else; the best of class c
        becomes sample c, the second best sample c + `num_classes`.
        """
        # stable sorts, the least important key first; a score that is no number is the worst
        order = candidate_M.argsort()
        order = order[
            score_M[order]
            .nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            .argsort(descending=True, stable=True)
        ]
        order = order[(candidate_M[order] % self.num_classes).argsort(stable=True)]
        candidate_M = candidate_M[order]
        label_M = candidate_M % self.num_classes
        first_Y = torch.bincount(label_M, minlength=self.num_classes).cumsum(0).roll(1)
        first_Y[0] = 0
        place_M = torch.arange(len(candidate_M)) - first_Y[label_M]
        kept_M = place_M < torch.tensor(self.kept_per_class)[label_M]
        return candidate_M[kept_M], (place_M * self.num_classes + label_M)[kept_M]


class RejectionSampler:
    """Draws all candidates, judges them, and gives the finished images of those that are kept.

    Args:
        sampler: draws and decodes; its conditions are the classes of the plan.
        judge: how well uint8 images show their class.
    """

    def __init__(self, plan: RejectionPlan, sampler: Sampler, judge: ClassJudge) -> None:
        self.plan, self.sampler, self.judge = plan, sampler, judge
        self.batch_size = sampler.settings.batch_size

    def facts(self) -> dict[str, Any]:
        """What a result line says about the choice."""
        return {
            "reject_keep": self.plan.keep,
            "reject_model": self.judge.label,
            "candidates": len(self.plan.candidates()),
        }

    def images(self, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Tensor]]:
        """This rank's kept samples, as `Sampler.images` gives them. All ranks call it together.

        The codes of a rank's own candidates stay in memory until the choice is made (4 bytes per code).
        """
        candidate_M = self.plan.candidates()
        mine = torch.tensor(shard_indices(len(candidate_M), rank, world_size), dtype=torch.long)
        own_M = candidate_M[mine]
        codes_M, score_M = self._judged(own_M)
        all_numbers = torch.cat(distributed.gather_rows(own_M))
        all_scores = torch.cat(distributed.gather_rows(score_M))
        chosen_N, index_N = self.plan.select(all_numbers, all_scores)
        place = torch.searchsorted(own_M, chosen_N).clamp(max=max(0, len(own_M) - 1))
        here = own_M[place] == chosen_N if len(own_M) else torch.zeros_like(chosen_N, dtype=torch.bool)
        for part in here.nonzero().squeeze(1).split(self.batch_size):
            if not len(part):
                continue
            image_BCHW = to_uint8(self.sampler.decode(codes_M[place[part]].long()))
            class_B = self.sampler.conditions.names(chosen_N[part] % self.plan.num_classes)
            yield {"image": image_BCHW, self.sampler.conditions.key: class_B, "index": index_N[part]}

    def _judged(self, number_M: Tensor) -> tuple[Tensor, Tensor]:
        codes_M, scores = torch.empty(0, dtype=torch.int32), [torch.empty(0)]
        done = 0
        for number_B in number_M.split(self.batch_size):
            if not len(number_B):
                continue
            label_B = number_B % self.plan.num_classes
            codes_BHWD = self.sampler.draw(number_B, label_B, rows=min(self.batch_size, len(number_M)))
            class_B = self.sampler.conditions.names(label_B)
            scores.append(self.judge(to_uint8(self.sampler.decode(codes_BHWD)), class_B).float().cpu())
            if not done:  # once, and filled in place: joining parts would need the memory twice
                codes_M = torch.empty(len(number_M), *codes_BHWD.shape[1:], dtype=torch.int32)
            codes_M[done : done + len(number_B)] = codes_BHWD
            done += len(number_B)
        return codes_M, torch.cat(scores)
