"""What methods are made of: the base of strategies, local training, averages, what rides along."""
