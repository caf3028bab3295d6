"""Optimizers: HN_Adam, the layer-wise fusion, and the registry of single optimizers."""
