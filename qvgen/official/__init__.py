"""The arithmetic and the files of the authors' release, quirks included. Not for new models."""
