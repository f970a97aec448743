"""The loop of long runs within one process: what it computes, how it stops and continues, what it shows and logs."""

import io
import os
import random
import signal
import sys
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fit_job import Job
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xattr_cuda as xa
from xattr_cuda.extras import MissingPackageError
from xattr_cuda.training import Stopped, board, fit, log, signals
from xattr_cuda.training.distributed import Processes, Talk
from xattr_cuda.training.errors import UserError
from xattr_cuda.training.state import Randomness, Trained

STEPS = 24  # of a whole job: four epochs of six batches


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _signals():
    """As a terminal's job has them: a shell may have started the tests with some ignored."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole():
    """(weights, result) of a job that nothing stopped, without checkpoints."""
    job = Job()
    result = job.fit()
    return job.weights(), result


def assert_same_weights(got, want):
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert torch.equal(got[name], weight), name


def send(number, at):
    """A function for `on_step` that sends this process a signal within a step."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


def plain_problem():
    model = xa.models.xmlp([4, 8, 1])
    x, y = torch.randn(32, 4), torch.rand(32, 1).round()

    def step(batch):
        output, attribution = xa.attribute(model, batch[0])
        loss = nn.functional.binary_cross_entropy_with_logits(output, batch[1])
        return {"loss": loss, "prior": 0.1 * xa.priors.l1(attribution)}

    return model, step, [(x[:16], y[:16]), (x[16:], y[16:])]


def test_fit_computes_what_a_loop_by_hand_does():
    model, step, batches = plain_problem()
    twin = xa.models.xmlp([4, 8, 1])
    twin.load_state_dict(model.state_dict())
    result = fit(step, model, torch.optim.Adam(model.parameters(), 0.01), batches, epochs=3, progress=False)
    optimizer, losses = torch.optim.Adam(twin.parameters(), 0.01), []
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            output, attribution = xa.attribute(twin, x)
            loss = nn.functional.binary_cross_entropy_with_logits(output, y)
            (loss + 0.1 * xa.priors.l1(attribution)).backward()
            optimizer.step()
            losses.append(loss.item())
    assert_same_weights(model.state_dict(), twin.state_dict())
    assert result.steps == 6
    assert [figures["loss"] for figures in result.history] == pytest.approx(
        [sum(losses[i : i + 2]) / 2 for i in (0, 2, 4)]
    )


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_run_stopped_anywhere_continues_to_the_same_weights(number, whole, tmp_path, seed):
    weights, result = whole
    drawn = random.Random(seed).sample(range(1, STEPS), 2)
    stops = sorted({*drawn, 12, STEPS})  # in the middle of epochs, at the end of two
    job, done = None, 0
    for stop in stops:
        job = Job(send(number, at=stop - done), seed=done + 3)  # another seed: all must come from the checkpoint
        with pytest.raises(Stopped) as stopped:
            job.fit(tmp_path, resume=True)
        assert stopped.value.code == 128 + number
        assert f"stopped by {number.name} after step {stop} " in str(stopped.value)
        assert f"{tmp_path}/step-{stop:010d}.pt" in str(stopped.value)
        done = stop
    job = Job(seed=99)
    final = job.fit(tmp_path, resume=True)
    assert_same_weights(job.weights(), weights)
    assert final.history == result.history
    assert final.steps == STEPS


def test_a_run_that_has_ended_is_left_as_it_is_or_taken_further(whole, tmp_path):
    first = Job()
    first.fit(tmp_path, epochs=2)
    before = (tmp_path / "step-0000000012.pt").read_bytes()
    again = Job(seed=8)
    again.fit(tmp_path, epochs=2, resume=True)
    assert again.steps == 0
    assert_same_weights(again.weights(), first.weights())
    assert (tmp_path / "step-0000000012.pt").read_bytes() == before
    longer = Job(seed=9)
    assert longer.fit(tmp_path, epochs=4, resume=True).history == whole[1].history
    assert_same_weights(longer.weights(), whole[0])


def test_without_resume_an_earlier_run_is_not_overwritten(tmp_path):
    Job().fit(tmp_path, epochs=1)
    with pytest.raises(UserError, match=r"step-0000000006\.pt is a checkpoint of an earlier run"):
        Job().fit(tmp_path, epochs=1)


def test_checkpoints_come_at_their_interval_and_the_last_are_kept(tmp_path, monkeypatch):
    Job().fit(tmp_path, epochs=3, every=4, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-0000000016.pt", "step-0000000018.pt"]
    clock = iter(range(10_000))
    monkeypatch.setattr("xattr_cuda.training.saving.time", SimpleNamespace(monotonic=lambda: next(clock)))
    Job().fit(tmp_path / "timed", epochs=1, every=timedelta(seconds=3), keep=9)
    assert sorted(os.listdir(tmp_path / "timed")) == [f"step-{n:010d}.pt" for n in (3, 6)]


def test_a_second_signal_acts_at_once(tmp_path):
    steps = []

    def twice(step):
        steps.append(step)
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Job(twice).fit(tmp_path)
    assert steps == [1]
    assert not os.listdir(tmp_path)


def test_a_second_signal_acts_at_once_in_a_run_within_a_comparison():
    with signals.StopRequests() as outer, signals.StopRequests() as inner:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert inner.received is signal.SIGINT
        assert outer.received is None
    with signals.StopRequests() as outer:
        with signals.StopRequests():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM with all saved"):
            outer.obey("with all saved")


def test_signals_are_left_alone_without_checkpoints_and_given_back_after_them(tmp_path):
    handlers = [signal.getsignal(number) for number in signals.SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        Job(send(signal.SIGINT, at=2)).fit()
    Job().fit(tmp_path, epochs=1)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == handlers


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.StopRequests() as requests:
            signal.raise_signal(signal.SIGTERM)
        assert requests.received is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_every_generator_draws_on_where_it_was():
    own = torch.Generator().manual_seed(1)
    randomness = Randomness([own, None, own])

    def draws():
        values = [torch.rand(()).item(), torch.rand((), generator=own).item()]
        return [*values, np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]  # noqa: NPY002

    draws()  # leaves half a pair of normal deviates behind in NumPy and Python
    state = randomness.state()
    want = draws()
    assert draws() != want
    randomness.restore(state)
    assert draws() == want


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by the compiler itself
def test_wrappers_leave_no_trace_in_a_checkpoint():
    network = nn.Linear(2, 1)
    trained = Trained(torch.compile(network), torch.optim.SGD(network.parameters(), 0.1), {})
    assert trained.state()["model"].keys() == network.state_dict().keys()


def test_terms_that_explode_under_the_scaler_leave_the_weights_alone():
    model, step, batches = plain_problem()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fit(lambda batch: step(batch)["loss"] * 1e30, model, optimizer, batches, epochs=1, progress=False, scaler=scaler)
    assert_same_weights(model.state_dict(), before)
    assert scaler.get_scale() < 1e38


def test_a_terminal_shows_a_bar_with_figures_and_a_file_a_line_an_epoch(capsys):
    model, step, batches = plain_problem()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fit(step, model, optimizer, batches, epochs=2, metric=lambda: {"accuracy": 0.25}, title="Digits", log_every=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": loss")[0] for line in lines] == ["Digits: epoch 1 of 2", "Digits: epoch 2 of 2"]
    assert all(", prior " in line and ", accuracy 0.25, " in line and line.endswith(" samples/s") for line in lines)
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    with log.progress_bar(screen) as bar:
        fit(step, model, optimizer, batches, epochs=2, metric=lambda: 0.5, progress=bar, title="Digits", log_every=1)
        bar.refresh()
        (task,) = bar.tasks
        assert (task.completed, task.total) == (4, 4)
    shown = screen.file.getvalue()
    assert all(word in shown for word in ("Digits", "4/4", ", prior ", ", metric 0.5, ", "samples/s"))
    fit(step, model, optimizer, batches, epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_samples_are_counted_in_batches_of_any_structure():
    x = torch.zeros(7, 2)
    counted = [log.samples_in(batch) for batch in (x, (x, 1), [{"a": x, "b": 3}], torch.tensor(1.0), "words", [])]
    assert counted == [7, 7, 7, 1, 1, 1]


def test_attributions_are_red_where_they_speak_for_and_blue_where_against():
    attribution = torch.zeros(2, 3, 5, 5)
    attribution[0, :, 1, 2], attribution[0, 0, 3, 4] = 1.0, -3.0  # channels are summed: 3 and -3
    colours = board.attribution_images(attribution)
    assert colours.shape == (2, 3, 5, 5)
    assert colours[0, :, 1, 2].tolist() == [1, 0, 0]
    assert colours[0, :, 3, 4].tolist() == [0, 0, 1]
    assert colours[0, :, 0, 0].tolist() == [1, 1, 1]
    assert (colours[1] == 1).all()  # nothing to see, and no division by zero
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        board.attribution_images(torch.zeros(3, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard and what it imports
def test_tensorboard_reads_back_scalars_and_images_also_of_a_continued_run(tmp_path):
    image = pytest.importorskip("PIL.Image")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    images = {"attribution": torch.randn(2, 8, 8)}
    shown = {"tensorboard": tmp_path / "board", "images": lambda: images, "log_every": 2}
    with pytest.raises(Stopped):
        Job(send(signal.SIGTERM, at=9)).fit(tmp_path / "run", **shown)
    os.remove(tmp_path / "run" / "step-0000000009.pt")  # as if it had been killed: two steps were logged in vain
    job = Job()
    result = job.fit(tmp_path / "run", resume=True, **shown)
    events = accumulator.EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
    events.Reload()
    assert {"loss", "prior", "samples/s", "epoch/loss", "epoch/size"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == list(range(2, STEPS + 1, 2))
    assert [event.step for event in events.Scalars("epoch/loss")] == [6, 12, 18, 24]
    logged = [event.value for event in events.Scalars("epoch/loss")]
    assert logged == pytest.approx([figures["loss"] for figures in result.history])
    drawn = events.Images("attribution")
    assert [event.step for event in drawn] == [6, 12, 18, 24]
    pixels = np.asarray(image.open(io.BytesIO(drawn[-1].encoded_image_string)))  # [H, W, 3], one beside the other
    want = board.attribution_images(images["attribution"]).permute(2, 0, 3, 1).reshape(8, 16, 3)
    assert np.abs(pixels[:8, :16] / 255 - want.numpy()).max() <= 1 / 255


def test_a_missing_tensorboard_says_how_to_install_it(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    model, step, batches = plain_problem()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(MissingPackageError, match=r"needs tensorboard, .*: pip install xattr_cuda\[tensorboard\]"):
        fit(step, model, optimizer, batches, epochs=1, progress=False, tensorboard=tmp_path)


def test_one_process_shares_with_nobody():
    alone = Processes()
    model = nn.Linear(2, 1)
    assert alone.first
    assert alone.wrap(model) is model
    with Talk(alone) as talk:
        assert talk.total([1.0, 2.0]) == [1.0, 2.0]
        assert talk.all("word") == ["word"]
    rows = TensorDataset(torch.arange(10))
    epochs = []
    for epoch in range(2):
        loader = alone.loader(rows, 4, seed=1)
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([batch for (batch,) in loader]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="shared evenly by 3"):
        Processes(0, 3).loader(rows, 4)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}, {"log_every": 0}, {"checkpoint": None, "resume": True}])
def test_wrong_arguments_are_refused_before_a_step(wrong, tmp_path):
    model, step, batches = plain_problem()
    given = {"checkpoint": tmp_path, "progress": False, "epochs": 1, **wrong}
    with pytest.raises(ValueError):
        fit(step, model, torch.optim.SGD(model.parameters(), 0.1), batches, **given)
    assert not os.listdir(tmp_path)


def test_a_loader_that_does_not_know_its_length_will_do(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.arange(12.0).view(12, 1))

    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    given = {"checkpoint": tmp_path, "progress": False, "resume": True}
    for epochs in (2, 3):
        result = fit(
            lambda x: model(x).square().mean(), model, optimizer, DataLoader(Stream(), 4), epochs=epochs, **given
        )
    assert result.steps == 9
    assert result.resumed == tmp_path / "step-0000000006.pt"


def test_every_epoch_has_an_order_of_its_own_that_follows_from_the_seed():
    orders = []
    for seed in (1, 1, 2):
        model = nn.Linear(1, 1)
        loader, seen = Processes().loader(TensorDataset(torch.arange(12.0).view(12, 1)), 4, seed=seed), []

        def step(batch, model=model, seen=seen):
            seen.extend(batch[0].flatten().tolist())
            return model(batch[0]).mean()

        fit(step, model, torch.optim.SGD(model.parameters(), 0.1), loader, epochs=2, progress=False)
        assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
        assert seen[:12] != seen[12:]
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]
