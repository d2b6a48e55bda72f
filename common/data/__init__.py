"""Floor 2: recordings -> windows -> splits -> a data set on disk.

Torch only in dataset.py. May import the ground floor (cli, errors, paths, options, artifacts).
"""
