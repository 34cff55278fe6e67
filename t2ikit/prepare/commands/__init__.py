"""The steps of ``t2ikit prepare`` on the command line: one file a step, with its options and what they start.

Importing these loads neither torch nor Lightning, so that ``--help`` and a mistyped option answer at once.
"""
