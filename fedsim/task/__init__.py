"""What is learnt: samples on nodes, model and loss, as tensors."""
