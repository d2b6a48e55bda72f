"""How many windows a fraction of a person's training windows takes. No torch."""

from __future__ import annotations


def share(count: int, fraction: float) -> int:
    """Rounded half up and at least one of what there is; monotone in the fraction, so that subsets
    nest.
    """
    return min(count, max(1, int(count * fraction + 0.5)))


def subset_sizes(negatives: int, positives: int, fraction: float, order: str) -> tuple[int, ...]:
    """What decides the size of the subset that `dataset.select_subset` takes: equal sizes are equal
    windows, whatever the fraction.
    """
    if order == "random":  # stratified
        return share(negatives, fraction), share(positives, fraction)
    return (share(negatives + positives, fraction),)
