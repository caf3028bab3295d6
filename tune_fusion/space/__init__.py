"""What to search: space files, configurations and their sampling. Knows neither torch nor Ray."""
