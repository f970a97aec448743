"""Priors over the global batch: many processes with `group=` against one process, uneven and empty shares included.

One job of four processes does everything: its first two also form a group of their own, and each forms one alone.
"""

import gloo
import pytest
import torch
import torch.distributed as dist
from helpers import relative_error
from prior_cases import PRIORS
from torch.nn.parallel import DistributedDataParallel

import xattr_cuda as xa
from xattr_cuda import priors

SHAPE = (2, 3)  # of the features, as the priors see them
SHARES = {2: [5, 2], 4: [3, 0, 4, 1]}  # number of processes: samples of each
COMPILED = ["gini", "l1", "target_distribution"]
TOGETHER = "all of them"
CRITERION = torch.nn.MSELoss(reduction="sum")


def share_of(batch, size, rank):
    return batch[: sum(SHARES[size])].split(SHARES[size])[rank]


def prior_of(name, group=None):
    if name == TOGETHER:
        return lambda a: sum(PRIORS[each][0]((1, *SHAPE), group=group)(a) for each in PRIORS)
    return PRIORS[name][0]((1, *SHAPE), group=group)


def gradients(sweep, prior, x):
    """The prior's value, and its gradient in every parameter and in x."""
    sweep.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    _, attribution = sweep(x)
    value = prior(attribution.unflatten(1, SHAPE))
    value.backward()
    found = {name.removeprefix("module."): p.grad.clone() for name, p in sweep.named_parameters()}
    return {"value": value.detach(), "x": x.grad, **found}


def whole_step(sweep, prior, batch, scale):
    """Parameter gradients of a step as the package's documentation says it for shares of any size."""
    sweep.zero_grad(set_to_none=True)
    loss, _, attribution = sweep(*batch)
    (scale * loss + 0.3 * prior(attribution.unflatten(1, SHAPE))).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in sweep.named_parameters()}


def of_gradient(prior, a):
    """The gradient of the squared gradient of the prior."""
    a = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(a), a, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), a)[0]


def compiled(name, group, a):
    """What a compiled graph with the prior gives, and what the same does without a compiler."""
    prior = prior_of(name, group)
    found = []
    for run in (prior, torch.compile(prior, fullgraph=True, backend="aot_eager")):
        leaf = a.clone().requires_grad_()
        value = run(leaf)
        value.backward()
        found += [value.detach(), leaf.grad]
    return found


def work(rank, sweep, x, labels):
    """All that one process finds, by name; of the priors over a group by its size too."""
    found = {}
    pair, everyone = dist.new_group([0, 1]), dist.group.WORLD
    alone = [dist.new_group([r]) for r in range(4)][rank]
    for group, size in ((pair, 2), (everyone, 4)):
        if rank >= size:
            continue
        share = share_of(x, size, rank)
        replica = DistributedDataParallel(sweep, process_group=group)
        for name in [*PRIORS, TOGETHER]:
            found[size, name] = gradients(replica, prior_of(name, group), share)
    found["alone"] = {name: gradients(sweep, prior_of(name, alone), x) for name in PRIORS}
    found["none"] = {name: gradients(sweep, prior_of(name), x) for name in PRIORS}
    replica = DistributedDataParallel(xa.Sweep(sweep.model, CRITERION))
    batch = share_of(x, 4, rank), share_of(labels, 4, rank)
    found["step"] = whole_step(replica, prior_of(TOGETHER, everyone), batch, 4 / len(x))
    a = share_of(x, 2, rank).unflatten(1, SHAPE) if rank < 2 else x.unflatten(1, SHAPE)
    if rank < 2:
        found["compiled"] = {name: compiled(name, pair, a) for name in COMPILED}
        found["twice"] = of_gradient(prior_of("graph_laplacian", pair), a)
    else:
        with pytest.raises(ValueError, match="gini: this process is not in `group`"):
            priors.gini(a, group=pair)
    return found


def process(rank, folder):
    gloo.join(rank, 4, folder)
    gloo.hand_in(work(rank, *torch.load(f"{folder}/given.pt", weights_only=False)), rank, 4, folder)


@pytest.fixture(scope="module")
def job(tmp_path_factory, request):
    """The network, the input, and what each of the four processes found."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(request.config.option.seed)
    sweep = xa.Sweep(xa.models.xmlp([6, 8, 7, 1]).double())
    x, labels = (torch.randn(8, n, dtype=torch.float64) for n in (6, 1))
    torch.save((sweep, x, labels), folder / "given.pt")
    return sweep, x, labels, gloo.found_by(process, 4, folder, seconds=180)


@pytest.mark.parametrize("name", [*PRIORS, TOGETHER])
@pytest.mark.parametrize("size", SHARES)
def test_the_processes_have_the_value_and_the_gradient_of_one(job, size, name):
    sweep, x, _, found = job
    x = x[: sum(SHARES[size])]
    want = gradients(sweep, prior_of(name), x)
    shares = [found[rank][size, name] for rank in range(size)]
    want["x"] = size * want["x"]  # that of each process's own samples, which nothing averages
    got_x = torch.cat([share.pop("x") for share in shares])
    assert relative_error(got_x, want.pop("x")) <= 1e-10
    for share in shares:
        assert share.keys() == want.keys()
        for key in want:
            assert relative_error(share[key], want[key]) <= 1e-10, key


@pytest.mark.parametrize("name", PRIORS)
def test_a_group_of_one_gives_bit_for_bit_what_no_group_gives(job, name):
    for found in job[-1]:
        got, want = found["alone"][name], found["none"][name]
        assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_graph_gives_the_same(job, name):
    for found in job[-1][:2]:
        value, gradient, in_graph, gradient_in_graph = found["compiled"][name]
        assert relative_error(in_graph, value) <= 1e-12
        assert relative_error(gradient_in_graph, gradient) <= 1e-12


def test_a_whole_step_of_uneven_shares_has_the_gradient_of_one_process(job):
    sweep, x, labels, found = job
    want = whole_step(xa.Sweep(sweep.model, CRITERION), prior_of(TOGETHER), (x, labels), 1 / len(x))
    for each in found:
        assert each["step"].keys() == want.keys()
        for key in want:
            assert relative_error(each["step"][key], want[key]) <= 1e-10, key


def test_a_prior_can_be_differentiated_twice(job):
    _, x, _, found = job
    want = of_gradient(prior_of("graph_laplacian"), x[: sum(SHARES[2])].unflatten(1, SHAPE))
    got = torch.cat([each["twice"] for each in found[:2]])
    assert relative_error(got, 2**2 * want) <= 1e-10  # each process's gradient is two times its part


def test_a_group_without_torch_distributed_and_no_group_at_all_are_refused(monkeypatch, tmp_path):
    a = torch.rand(4, 6)
    with pytest.raises(RuntimeError, match=r"gini: .*torch\.distributed is not initialised; call .*init_process_group"):
        priors.gini(a, group=object())
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", world_size=1, rank=0)
    try:
        assert torch.equal(priors.gini(a, group=dist.group.WORLD), priors.gini(a))
        for wrong, given in ((0, "int"), ("world", "str"), (dist.group, "type|_WorldMeta")):
            with pytest.raises(TypeError, match=f"gini: `group` is a ({given}); wanted a .*ProcessGroup"):
                priors.gini(a, group=wrong)
    finally:
        dist.destroy_process_group()
