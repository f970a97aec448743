"""Experiments that train with attribution priors: decoy digits and tabular data.

`errors` says what went wrong in one line; `decoy` and `tabular` make the data; `methods` are the attributions that can
be trained through; `protocol` and `demo` train; `timing` measures; `figures` draws.
What needs more than torch and NumPy is imported where it is used, so that the package itself stays light.
"""
