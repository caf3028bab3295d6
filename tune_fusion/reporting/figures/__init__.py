"""The figures of the report: each function takes records and draws, or says why there is nothing to draw."""
