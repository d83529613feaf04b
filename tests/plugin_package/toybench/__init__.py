"""A third-party plugin package. It imports nothing from evalharness at module level but its data types."""
