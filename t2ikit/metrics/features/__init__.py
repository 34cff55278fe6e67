"""Networks that turn images into features, and the pixel pipelines before them."""
