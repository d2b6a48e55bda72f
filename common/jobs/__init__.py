"""Floor 2: what to do and what is already done. Identity, job files, grids, verdicts, the plan.

No torch. May import common/data and the ground floor (cli, errors, paths, options, artifacts).
"""
