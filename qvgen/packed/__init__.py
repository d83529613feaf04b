"""True low-bit storage and integer execution of finished models; see ``docs/packed.md``."""
