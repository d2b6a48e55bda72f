"""A finished model on new recordings: episodes, their scores, predictions and export.

Floor 4: may import common/training, common/data, common/jobs and the ground floor. `episodes` and
`events` need no torch, so that the report (floor 5) can import them.
"""
