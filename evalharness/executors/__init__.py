"""Ways to run tasks on more than this machine's processes, behind the contract of ``evalharness.executor``."""
