"""How firmly the reference must decide for every correct backend to decide alike, and why.

How far answers may then lie apart is the task's to say (`atm_export.tasks`).
"""

MARGIN = 2e-6
MARGIN_REASON = (
    "FP32 similarities of two correct backends differ by up to 1e-6, so inputs are chosen whose "
    "cosines clear every threshold and rank by 2e-6; where none does (flat images, random "
    "weights), a choice within 2e-6 of the best counts as the same, and answers are compared with "
    "the reference following that choice"
)
