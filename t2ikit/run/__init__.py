"""What has a Trainer or a run folder: experiments built and trained, and what is done with a trained model."""
