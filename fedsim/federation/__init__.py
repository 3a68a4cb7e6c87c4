"""Clock, state and verbs of a federation, its jobs in flight, its ledger, and what rides along."""
