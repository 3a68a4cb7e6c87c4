"""Orders and their replies between a server and workers over gRPC: nothing lost, nothing twice, whatever the network does."""
