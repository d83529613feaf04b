"""What files and columns of training data are called."""

SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"})
VIDEO_KEYS = ("video", "file", "path")
CAPTION_KEYS = ("caption", "text", "prompt")
