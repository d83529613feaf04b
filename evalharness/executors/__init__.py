"""Ways to run tasks beyond this machine's processes, behind the contract of ``evalharness.executor``."""
