"""Low-bit quantization-aware training for video diffusion models, and the QVGen method."""
