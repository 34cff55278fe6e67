"""How well an image fits its prompt by one number of a network: CLIP scores and learned rewards."""
