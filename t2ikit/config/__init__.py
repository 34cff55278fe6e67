"""From an experiment file to a run: composed, checked, built.

``compose`` reads files only; importing it loads neither torch nor Lightning.
"""

from t2ikit.config.compose import ConfigError, Override, compose, merge, shipped_experiments

__all__ = ["ConfigError", "Override", "compose", "merge", "shipped_experiments"]
