"""What people see of runs: progress, tables, pictures, checks, MLflow."""
