"""The metrics that come with the harness, one file each."""

# Sources outside this folder that decide a score; an edit of one makes all scores stale.
BUILT_ON = (
    "evalharness.tinyworld.judge_files",
    "evalharness.tinyworld.judge_nets",
    "evalharness.tinyworld.judges",
    "evalharness.tinyworld.spec",
    "evalharness.video",
)
