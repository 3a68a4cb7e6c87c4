"""Runs beside each other: what their settings are, how they end, what they cost, and what their seeds can tell."""
