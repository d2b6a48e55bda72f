"""How results of a grid are summarised: one rule, for the table that ends a run and for the report.

Which setting stands for a person is decided by validation scores of the other people, never by test
scores. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common.jobs.identity import has_effect
from common.options import FROM_SCRATCH, BaseOptions, FinetuneOptions, shapes_result

# Options with rows or columns of their own, those that repeat a measurement, and those that name
# other data: settings are what else a grid varies.
FACTORS = ("mode", "target_data_pct", "target_val", "target_order", "n_base_participants")
REPEATS = ("seed", "seed_finetune", "base_order_seed", "split_seed")
CONTEXT = ("data_path", "window_size")
ROUNDING = 10  # decimals; what is left of a float sum breaks no tie


@dataclass(frozen=True)
class Choice:
    """The setting of each person. `candidates`: the settings that were compared. `undecided`: for
    some person no scores compare them, and the first was taken.
    """

    settings: dict[str, str]
    candidates: list[str]
    undecided: bool


def setting_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options that `rows` vary and that are neither factors, repeats nor without influence on the
    result. What differs between modes alone is no variation: each mode is looked at by itself, and
    so are all that start from a base model, by what that was trained with.
    """
    apart = {*FACTORS, *REPEATS, *CONTEXT}
    names = [name for name in FinetuneOptions.model_fields if shapes_result(name)]
    return [name for name in names if name not in apart and _varies(name, rows)]


def _varies(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values: dict[str, set[str]] = {}
    for row in rows:
        mode = row["mode"]
        if has_effect(name, mode):
            values.setdefault(mode, set()).add(repr(row.get(name)))
            if mode not in FROM_SCRATCH and name in BaseOptions.model_fields:
                values.setdefault("from a base model", set()).add(repr(row.get(name)))
    return any(len(own) > 1 for own in values.values())


def choose_settings(
    scores: Mapping[str, Mapping[str, float | None]], *, lower_is_better: bool = False
) -> Choice:
    """Choose for each person the setting with the best mean validation score over the *other*
    people who have a score of every candidate; the first in order among equals.

    Settings without any score are candidates only where no setting has one, and of the others only
    those that the most people have (usually: everybody), so that a choice drops as few people as
    can be. `scores`: by person and setting; None or NaN where a result has no score.
    """
    known = {
        person: {
            setting: score
            for setting, score in own.items()
            if score is not None and not math.isnan(score)
        }
        for person, own in scores.items()
    }
    names = sorted({setting for own in scores.values() for setting in own})
    scored = {setting for own in known.values() for setting in own} or set(names)
    people = {setting: sum(setting in own for own in scores.values()) for setting in sorted(scored)}
    candidates = [name for name, number in people.items() if number == max(people.values())]
    complete = {person: own for person, own in known.items() if own.keys() >= set(candidates)}
    chosen, undecided = {}, False
    for person in scores:
        others = [own for other, own in complete.items() if other != person]
        undecided |= not others and len(candidates) > 1
        sign = -1 if lower_is_better else 1
        chosen[person] = (
            max(
                candidates,
                key=lambda name: sign * round(fmean(own[name] for own in others), ROUNDING),
            )
            if others and len(candidates) > 1
            else candidates[0]
        )
    return Choice(chosen, candidates, undecided)


def reported_base_count(people: Mapping[float, set[str]]) -> float | None:
    """The largest number of base participants with which at least half of the people have results:
    with more a run may just have begun. `people`: those with results, by that number. None without
    any.
    """
    everyone = set[str]().union(*people.values())
    enough = [count for count, there in people.items() if 2 * len(there) >= len(everyone)]
    return max(enough or people, default=None)
