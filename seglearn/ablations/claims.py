"""What an ablation is made of, and the rule by which a claim is judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "does not hold", "cannot tell here"]

RULE = (
    "A claim says that one arm scores higher than another by more than a margin (0, or below 0 for 'as good as'). Runs "
    "of one seed make a pair; of the pairs' differences, less the margin, the mean is compared with twice its standard "
    "error. Above it the claim holds, below minus it it does not, in between this cannot tell. With three seeds, two "
    "arms that do not differ at all pass for different in 18 of 100 cases, 9 on either side; with ten seeds in 8."
)


@dataclass(frozen=True)
class Arm:
    """One way to build or train the model, run with every seed.

    Attributes:
        label: its name, in the table and in the result.
        recipe: of the package, by name.
        overrides: what differs from the recipe and the common setting.
        start: label of the arm whose best weights it starts from.
        of: label of the arm that it is the network of: nothing is trained, only tested in another way.
        tested: options of the model that are changed for the test.
        windows: tested in windows of the training crop's size, not on whole pictures.
        crf: scores without or with a CRF behind the network, whose settings are searched on every fifth image of val;
            both are of the other images.
    """

    label: str
    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    of: str | None = None
    tested: Mapping[str, Any] = field(default_factory=dict)
    windows: bool = False
    crf: Literal["alone", "crf"] | None = None


@dataclass(frozen=True)
class Claim:
    """`more` has a higher `score` than `less`, by more than `margin`, which is below 0 for 'as good as'."""

    sentence: str
    more: str
    less: str
    score: str = "miou"
    margin: float = 0.0


@dataclass(frozen=True)
class Ablation:
    """One question, answered by arms that differ in one thing.

    Attributes:
        name: for the command line and the result's file.
        question: in a sentence.
        finding: what the paper found, with its numbers where we could check them.
        source: where that is written, and how we know.
        arms: what is compared.
        claims: what the verdicts are about.
    """

    name: str
    question: str
    finding: str
    source: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]

    def arm(self, label: str) -> Arm:
        """The arm of that label."""
        return next(arm for arm in self.arms if arm.label == label)


@dataclass(frozen=True)
class Judgement:
    """What came out for a claim; the mean and its standard error are None where fewer than two seeds are done."""

    verdict: Verdict
    seeds: int
    mean: float | None
    standard_error: float | None


def judge(differences: Sequence[float], margin: float = 0.0) -> Judgement:
    """Apply `RULE` to the paired differences of two arms, a number for each seed.

    Differences that are the same for every seed, as those of memory are, have no error: their sign decides.
    """
    if len(differences) < 2:
        return Judgement("cannot tell here", len(differences), None, None)
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    verdict: Verdict = "cannot tell here"
    if mean - margin > 2 * error:
        verdict = "holds"
    elif mean - margin < -2 * error:
        verdict = "does not hold"
    return Judgement(verdict, len(differences), mean, error)
