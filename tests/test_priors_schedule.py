"""schedule: the strength at every step, its state, and what it refuses."""

import copy
import math

import pytest
import torch

from xattr_cuda import priors


@pytest.mark.parametrize("shape", ["linear", "cosine", "a function"])
def test_the_strength_rises_from_nothing_to_its_full_value_and_stays(shape):
    curve = {"linear": lambda t: t, "cosine": lambda t: math.sin(math.pi * t / 2) ** 2, "a function": lambda t: t**3}
    given = curve[shape] if shape == "a function" else shape
    prior = priors.schedule(priors.l1, 0.3, warmup=8, delay=5, shape=given)
    for step in range(20):
        want = 0 if step <= 5 else 0.3 if step >= 13 else 0.3 * curve[shape]((step - 5) / 8)
        assert prior.strength_at(step) == pytest.approx(want, abs=1e-15)
        assert prior.strength == prior.strength_at(step)
        prior.step()
    assert prior.strength_at(13) == 0.3


def test_it_is_called_as_its_prior_is_and_scales_value_and_gradient():
    first, second = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    prior = priors.schedule(priors.consistency, 2.0, warmup=4)
    prior.step()
    prior(first, second, inverse=lambda a: a.flip(1)).backward()
    got = first.grad.clone(), second.grad.clone()
    first.grad = second.grad = None
    (0.5 * priors.consistency(first, second, inverse=lambda a: a.flip(1))).backward()
    torch.testing.assert_close(got, (first.grad, second.grad), rtol=1e-14, atol=0)


def test_without_a_warm_up_the_strength_is_there_from_the_first_step_after_the_delay():
    assert priors.schedule(priors.l1, 0.3, warmup=0).strength == 0.3
    delayed = priors.schedule(priors.l1, 0.3, warmup=0, delay=2)
    assert [delayed.strength_at(step) for step in range(4)] == [0, 0, 0.3, 0.3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_of_the_prior_is_kept(dtype):
    a = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    prior = priors.schedule(priors.l1, 0.3, warmup=0)
    prior(a).backward()
    assert prior(a).dtype == a.grad.dtype == dtype
    torch.testing.assert_close(prior(a), 0.3 * priors.l1(a))


def test_a_compiled_step_is_compiled_once_and_follows_the_strength():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    prior, a = priors.schedule(priors.l1, 0.3, warmup=5, delay=2), torch.randn(4, 6, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(lambda a: prior(a), fullgraph=True, backend=backend)
    for step in range(9):
        torch.testing.assert_close(compiled(a), prior.strength_at(step) * priors.l1(a), rtol=1e-12, atol=0)
        prior.step()
    assert len(graphs) == 1


def test_a_step_may_be_counted_before_the_backward_pass():
    prior, a = priors.schedule(priors.l1, 0.4, warmup=2), torch.ones(1, 3, requires_grad=True)
    prior.step()
    value = prior(a)
    prior.step()
    value.backward()
    torch.testing.assert_close(a.grad, torch.full((1, 3), 0.2))


def test_a_resumed_run_continues():
    prior = priors.schedule(priors.l1, 0.3, warmup=10, shape="cosine")
    for _ in range(4):
        prior.step()
    state = copy.deepcopy(prior.state_dict())
    resumed = priors.schedule(priors.l1, 0.3, warmup=10, shape="cosine")
    resumed.load_state_dict(state)
    for _ in range(10):
        assert resumed.strength == prior.strength
        prior.step()
        resumed.step()
    assert state == {"steps": 4}


def test_what_is_no_schedule_is_refused():
    for arguments, error, match in [
        ((0.3, 0.3, 10), TypeError, "`prior` is a float"),
        ((priors.l1, math.nan, 10), ValueError, "`strength` is nan"),
        ((priors.l1, 0.3, -1), ValueError, "`warmup` is -1"),
        ((priors.l1, 0.3, 1.5), ValueError, r"`warmup` is 1\.5"),
    ]:
        with pytest.raises(error, match=f"schedule: {match}"):
            priors.schedule(*arguments)
    with pytest.raises(ValueError, match="schedule: `delay` is True"):
        priors.schedule(priors.l1, 0.3, 10, delay=True)
    with pytest.raises(ValueError, match="schedule: `shape` is 'step'; wanted 'linear', 'cosine' or a function"):
        priors.schedule(priors.l1, 0.3, 10, shape="step")
    with pytest.raises(ValueError, match="load_state_dict: `steps` is -3"):
        priors.schedule(priors.l1, 0.3, 10).load_state_dict({"steps": -3})
