"""Classifiers: how much do the images of a generator teach one? (SynthReal)"""
