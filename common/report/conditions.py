"""What is compared: conditions (a way of training and its labelling budget) and scores."""

from __future__ import annotations

from typing import NamedTuple

from common.options import FROM_SCRATCH, MODE_WORDS

MODES = tuple(MODE_WORDS)
UNTOUCHED, RECALIBRATED = "base", "base_tuned"
CONDITION_WORDS = {UNTOUCHED: "untouched base", RECALIBRATED: "base, threshold tuned"} | {
    mode: words.long for mode, words in MODE_WORDS.items()
}
VAL_WORDS = {"full": "", "matched": ", matched selection", "none": ", no selection"}
ORDER_WORDS = {"random": "", "time": ", earliest windows", "block": ", one stretch of windows"}
# Scores that can exceed 1.
UNBOUNDED = frozenset(
    {
        "loss",
        "false_episodes_per_hour",
        "false_episodes_per_day",
        "false_episodes_per_hour_iou",
        "false_episodes_per_day_iou",
        "fragmented_bouts",
        "merged_bouts",
    }
)
LOWER_IS_BETTER = UNBOUNDED | {"brier", "ece", "false_time_share"}


class Condition(NamedTuple):
    """A mode and the labelling budget that it had: the fraction of the target's training windows,
    which of the target's windows chose the epoch (`target_val`), and in which order the fraction
    was taken (`target_order`). Both bases and a forest of base participants have fraction 0, but a
    threshold that was tuned on a matched selection has that fraction.
    """

    mode: str
    fraction: float
    val: str = "full"
    order: str = "random"

    @property
    def words(self) -> str:
        """As tables and figures name it."""
        share = f", {percent(self.fraction)}" if self.fraction else ""
        return CONDITION_WORDS[self.mode] + share + self.budget_words

    @property
    def budget_words(self) -> str:
        """What of the labelling budget is not as usual, beginning with a comma."""
        return VAL_WORDS[self.val] + ORDER_WORDS[self.order]

    @property
    def series(self) -> Condition:
        """The same with fraction 0: what all fractions of a mode and budget have in common."""
        return self._replace(fraction=0.0)

    @property
    def starts_from_base(self) -> bool:
        """Whether it has a base model of its own that it can be compared with."""
        return self.mode != UNTOUCHED and self.mode not in FROM_SCRATCH

    @property
    def place(self) -> tuple[int, int, int, float]:
        """For sorting: bases first, then modes in their fixed order."""
        return (
            (UNTOUCHED, RECALIBRATED, *MODES).index(self.mode),
            list(VAL_WORDS).index(self.val),
            list(ORDER_WORDS).index(self.order),
            self.fraction,
        )


BASE = Condition(UNTOUCHED, 0.0)


def recalibrated(condition: Condition) -> Condition:
    """The base whose threshold was tuned on the same selection windows as this condition's epoch
    (on all of them, where it had none).
    """
    if condition.val == "matched":
        return Condition(RECALIBRATED, condition.fraction, "matched", condition.order)
    return Condition(RECALIBRATED, 0.0)


def percent(fraction: float) -> str:
    """'12.5 %'."""
    return f"{100 * fraction:.12g} %"
