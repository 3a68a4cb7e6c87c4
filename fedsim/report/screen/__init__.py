"""What a terminal or a notebook shows while runs go on."""
