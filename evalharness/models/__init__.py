"""The models that come with the harness."""

# Sources outside this folder that decide what a model makes and learns from; an edit of one makes
# its cells stale.
BUILT_ON = (
    "evalharness.tinyworld.components",
    "evalharness.tinyworld.scenes",
    "evalharness.tinyworld.shapes",
    "evalharness.tinyworld.spec",
    "evalharness.tinyworld.training.text2video",
    "evalharness.tinyworld.world",
)
