"""Reading PyTorch's own files (``.pt``, ``.pth``) as data: nothing in them is unpickled or run.

A checkpoint is a pickle beside raw numbers. ``machine`` follows the pickle's opcodes with a stack of
its own that knows plain containers and PyTorch's few names for tensors; ``containers`` finds the pickle
and the numbers in the file; ``tensors`` puts them together. What they do not know is refused by name.
"""
