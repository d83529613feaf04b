"""A protocol that asks one thing: does it run? For the first run of a model on a machine."""
