"""Image data: sets, splits, cache and batches."""
