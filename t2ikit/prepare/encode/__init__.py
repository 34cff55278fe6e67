"""Images and captions to the records of training."""
