"""One experiment a paper: declared before it is run, judged by a written rule, recorded whatever comes out.

``declare`` holds the types that a ``claims/<slug>.py`` is written with, ``runner`` runs them, ``record`` reads and
writes results.
"""

from policydist.claims.declare import (
    Arm,
    Beyond,
    Bound,
    Claim,
    Deviation,
    Every,
    Inside,
    Intersects,
    Job,
    Metric,
    Outcome,
    Point,
    Quorum,
    Rule,
    Setting,
    Tuning,
)
from policydist.claims.estimands import Contrast, Correlation, LogRatio, RatioOfMeans, Trend, difference, value

__all__ = [
    "Arm", "Beyond", "Bound", "Claim", "Contrast", "Correlation", "Deviation", "Every", "Inside", "Intersects",
    "Job", "LogRatio", "Metric", "Outcome", "Point", "Quorum", "RatioOfMeans", "Rule", "Setting", "Trend", "Tuning",
    "difference", "value",
]  # fmt: skip
