"""Data sets, the sample order, augmentation and the feed. Import the submodule you need; this one is empty."""
