"""What `train.fit` is made of: models stacked along a replica axis, their optimiser, steps, loop and checkpoints."""
