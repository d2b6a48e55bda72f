"""Names of the scores that results have on test windows. `training.metrics` computes those of
windows, `report.predictions` those of events.
"""

from __future__ import annotations

THRESHOLDED = ("macro_f1", "f1", "precision", "recall", "specificity", "balanced_accuracy", "mcc")
SCORES = ("loss", *THRESHOLDED, "pr_auc", "roc_auc", "brier", "ece")
# Of events, by field of `events.EventScores`; the first group also at the stricter matching.
MATCHED = {
    "recall": "event_recall",
    "precision": "event_precision",
    "f1": "event_f1",
    "false_episodes_per_hour": "false_episodes_per_hour",
    "false_episodes_per_day": "false_episodes_per_day",
}
UNMATCHED = {
    "false_time_share": "false_time_share",
    "fragmented_bouts": "fragmented_bouts",
    "merged_bouts": "merged_bouts",
}
STRICTER = "_iou"
REPORTED = (
    *SCORES,
    *MATCHED.values(),
    *UNMATCHED.values(),
    *(name + STRICTER for name in MATCHED.values()),
)
