"""Searches over recorded trials: the real decisions in simulated time."""
