"""What people see of runs: `screen` meanwhile; `comparison`, `figures`, `page` and `mlflow` afterwards; tables and checks beside them."""
