"""People compare pictures of models on a page of its own; what they prefer, and how far they agree."""
