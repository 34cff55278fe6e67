"""Augmentations as pure functions: CutMix placements and mixes, the noise gate. Callbacks wire them into a run."""
