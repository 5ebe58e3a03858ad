"""Checkpoints as the library transformers saves them, read as data: that library is not needed."""
