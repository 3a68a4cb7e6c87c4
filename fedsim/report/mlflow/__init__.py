"""Runs in MLflow: a process that follows a run's folder, what it uploads, and MLflow's own pages."""
