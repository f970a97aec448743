"""Twenty graphs that nobody has seen: gradients, compiled too, and completeness."""

import pytest
import torch
from helpers import assert_same_step
from random_graphs import RandomGraph
from test_sweep_graphs import doubled, step, swept

import xattr_cuda as xa


@pytest.fixture(params=range(20))
def graph(request):
    """A random graph in float64 with random normal parameters, and an input."""
    model = RandomGraph(torch.initial_seed() % 2**32 + request.param).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    return model, x


def test_every_gradient_of_a_random_graph_is_that_of_double_backward(graph, backend):
    model, x = graph
    cotangent = torch.randn(3, 3, dtype=torch.float64)
    for training in (True, False):
        model.train(training)
        assert_same_step(step(swept, model, (x,), cotangent), step(doubled, model, (x,), cotangent), 1e-9)


def test_every_gradient_of_a_compiled_random_graph_is_that_of_double_backward(graph):
    model, x = graph
    model.eval()
    cotangent = torch.randn(3, 3, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(swept, fullgraph=True, backend="aot_eager")
    assert_same_step(step(compiled, model, (x,), cotangent), step(doubled, model, (x,), cotangent), 1e-9)


def test_attributions_of_a_random_graph_are_complete(graph, backend):
    model, x = graph
    for training in (True, False):
        model.train(training)
        for label in range(3):
            with torch.no_grad():
                output, attribution = xa.attribute(model, x, label)
            torch.testing.assert_close(attribution.flatten(1).sum(1), output[:, label], rtol=1e-10, atol=1e-10)
