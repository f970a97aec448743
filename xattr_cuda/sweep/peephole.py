"""Rewrites of a program that leave its function and its derivatives as they are and cost less."""

from dataclasses import replace

from .arguments import leaves
from .program import Program
from .rules.activation import ActivationRule
from .rules.registry import Value


def _asked_for(program: Program) -> set[int]:
    """Values whose shape the program reads."""
    return {a.index for size in program.sizes for a in leaves((size.args, size.kwargs)) if isinstance(a, Value)}


def rectify_after_pooling(program: Program) -> Program:
    """ReLU -> max pool becomes max pool -> ReLU, on fewer elements: both keep the largest positive element of a window.

    Where a window holds none, the first form picks an element whose mask is off, the second masks what it picked.
    """
    instructions, readers, asked = list(program.instructions), program.graph.readers(), _asked_for(program)
    for i, relu in enumerate(instructions):
        out = program.inputs + i
        if relu.layer_type is not ActivationRule or len(readers[out]) != 1 or out in {*program.outputs, *asked}:
            continue
        pool = instructions[readers[out][0]]
        if pool.layer_type.rectifies and pool.rebuild is None:
            instructions[i] = replace(pool, inputs=relu.inputs)
            instructions[readers[out][0]] = replace(relu, inputs=(out,))
    return replace(program, instructions=tuple(instructions), schedules={})
