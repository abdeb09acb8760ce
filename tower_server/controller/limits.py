"""Times and bounds of the controller, each with its reason."""

from __future__ import annotations

from typing import Final

RETRY_MIN: Final = 0.2  # of one cluster's work that failed
RETRY_MAX: Final = 300.0  # a cluster that always fails asks twelve times an hour
TOLD_AFTER: Final = 3  # failures in a row, a second or two: what passes by itself is nothing to write down
WORKERS: Final = 8  # reconciles at once: what a single apiserver answers well
WRITE_DEADLINE: Final = 35.0  # an admission webhook may take 30 s before the apiserver gives its verdict
ATTEMPTS: Final = 8  # at a write that keeps meeting others'
RECONCILE_DEADLINE: Final = 120.0  # of one look at one cluster: a dozen calls, each with a deadline of its own
SYNC_DEADLINE: Final = 60.0  # for the first lists of a term
TIDY_EVERY: Final = 600.0  # between two looks for claims that nobody uses
