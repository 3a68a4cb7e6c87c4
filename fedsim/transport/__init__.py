"""Orders and their replies between a server and workers over gRPC: nothing lost, nothing twice, whatever the network does."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC says is said again, in words, by whoever it concerns
