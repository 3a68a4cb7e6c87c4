"""The same scenario on real machines: a server, its workers, and a record from which a run is recomputed."""
