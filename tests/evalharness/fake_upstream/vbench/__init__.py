"""A stand-in for the package ``vbench``: its functions' shapes, and its ways to fail."""
