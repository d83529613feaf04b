"""CogVideoX and Wan as harness models: full-size pipelines of diffusers, from a local folder or a hub.

This folder's hash is not part of tinyworld's: a change here leaves that model's cells alone.
"""

BUILT_ON = ("evalharness.data",)
