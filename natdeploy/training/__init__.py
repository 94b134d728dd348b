"""How weights are adapted: the training loop, NAT's supernet adaptation, and conventional fine-tuning."""
