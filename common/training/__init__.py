"""Floor 3: one training. Networks, augmentation, the loop, base models, fine-tunes, scores.

May import common/jobs, common/data and the ground floor.
"""
