"""Floor 5: results -> statistics, figures, page, LaTeX. What report.py is made of.

collect and predictions (folders into a table), folds (K tests of a person into one) -> cells and
grids (who, which conditions) -> analysis and comparisons (estimates, tests) -> wording and tables,
drawing and figures -> sections -> page. May import common/use/episodes and events,
common/training/metrics, common/cluster/journal, common/jobs, common/data and the ground floor. No
torch.
"""
