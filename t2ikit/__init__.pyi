# What type checkers and editors see: at run time `load` and `train` are imported when they are asked for.
from t2ikit.run.python import train as train
from t2ikit.run.trained import load as load

__version__: str
