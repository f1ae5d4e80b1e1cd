"""From a config to a folder of results: arguments, what they describe, its drivers, and what is recorded."""
