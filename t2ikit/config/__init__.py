"""From an experiment file to a run: composed, checked, built; reading files loads neither torch nor Lightning."""
