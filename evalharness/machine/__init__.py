"""What a machine can do with a model, before it is asked to: disk, memory, time; and fetching weights."""
