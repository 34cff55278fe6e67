"""Scores of a whole set of images against a reference set: Frechet distances, PRDC, CMMD, KID."""
