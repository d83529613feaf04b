"""The unmodified package vbench, in an environment of its own."""

# Sources outside this folder that decide a score; an edit of one makes all scores stale.
BUILT_ON = (
    "evalharness.interchange.submission",
    "evalharness.native.flow",
    "evalharness.native.raft",
    "evalharness.native.static_filter",
)
