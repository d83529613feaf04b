"""Training data of the video models: clips and captions become cached latents and embeddings.

evalharness data CLIPS --model wan2.1-1.3b --out DATA
"""
