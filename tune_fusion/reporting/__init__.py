"""What a person reads: tables of a search."""
