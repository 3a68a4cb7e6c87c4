"""Who computes jobs."""
