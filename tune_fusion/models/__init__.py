"""Classifiers and their layer maps."""
