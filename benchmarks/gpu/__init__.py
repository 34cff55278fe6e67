"""A series of measurements for a GPU that is there for a few minutes: ``python -m benchmarks gpu``.

``command`` runs the parts of ``parts`` one after the other, each in a process of its own, and writes what there is
after each of them; the other files are the parts.
"""
