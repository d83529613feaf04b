"""QVGen's claims put to the test on tinyworld: many small trainings of one grid, and their comparison.

    python -m evalharness.tinyworld.claims.arms --grid configs/claims-main.yaml --device cuda
    python -m evalharness.tinyworld.claims.report --grid configs/claims-main.yaml --out results/claims/main
    python -m evalharness.tinyworld.claims.repeat --records main=FOLDER,earlier=FOLDER --out results/claims
    python -m evalharness.tinyworld.claims.scores --runs s1=FOLDER,s2=FOLDER --out results/claims/scores

The first trains every arm of the grid one after another in one process; several processes (one for each
GPU, say) may share one output folder. The second compares trainings, the third the same trainings made
more than once, the fourth the scores that ``evalharness run`` gave their checkpoints.

Width is no axis of a grid: another width needs another full-precision model, which the package does not ship
and ``arms --pipeline`` takes (``configs/claims-width.yaml``).
"""
