"""What messages tell: noise, what it costs of a budget, and the attack that measures it."""
