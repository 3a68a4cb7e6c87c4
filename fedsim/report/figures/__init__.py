"""Pictures of runs as files, one module a picture."""
