"""The search: the only place that knows Ray."""
