"""VBench's own dimensions, computed natively: its formulas on its networks, batched, on a modern stack.

Apart from ``evalharness.metrics``, whose metrics have VBench's names but tinyworld's judges.
"""

# Sources outside this folder that decide a score; an edit of one makes all scores stale.
BUILT_ON = ("evalharness.frames", "evalharness.metrics.consistency", "evalharness.video")
