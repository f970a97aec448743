"""Checkpoints: on disk whole or not at all; the unsound are refused by name with the reason, the previous one used."""

import errno
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from fit_job import Job

from xattr_cuda.training import checkpoints
from xattr_cuda.training.checkpoints import Folder, RefusedError, read, replacing
from xattr_cuda.training.errors import UserError

LAST, BEFORE = "step-0000000012.pt", "step-0000000010.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the folder of a job of 12 steps with checkpoints after 10 and 12, its final weights)."""
    folder = tmp_path_factory.mktemp("made")
    job = Job()
    job.fit(folder, epochs=2, keep=2)
    assert sorted(os.listdir(folder)) == [BEFORE, LAST]
    return folder, job.weights()


@pytest.fixture
def folder(made, tmp_path):
    for name in (BEFORE, LAST):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    return tmp_path


@pytest.fixture
def dice(seed):
    return random.Random(seed)


def harm(path, dice):
    """A checkpoint that would run code, sealed as a sound one."""
    with replacing(path) as file:
        torch.save({"format": checkpoints.FORMAT, "version": 1, "x": Harm()}, file)
        checkpoints._seal(file)


class Harm:
    """Pickled, it is code that runs when it is read."""

    def __reduce__(self):
        return os.system, ("echo harm",)


def cut(path, dice):
    path.write_bytes(path.read_bytes()[: dice.randrange(1, path.stat().st_size)])


def flip(path, dice):
    """One bit of the longest record."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        content = archive.read(record)
    data = bytearray(path.read_bytes())
    data[data.index(content) + dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def write(path, content):
    """A checkpoint, sealed as such, of anything."""
    path.unlink()
    folder = Folder(path.parent, keep=99)
    saved = folder.save(content, int(path.stem.removeprefix("step-")))
    assert saved == path


def unreadable(path, dice):
    """Sealed, but not what torch.load reads."""
    with replacing(path) as file:
        file.write(b"PK\x03\x04 nothing\0\0")
        checkpoints._seal(file)


NO_END = "it is cut short, or no checkpoint of a run: it does not end in a checksum"
UNSOUND = {
    "cut short": (cut, NO_END),
    "empty": (lambda path, dice: path.write_bytes(b""), NO_END),
    "one bit": (flip, "it is damaged: its checksum is wrong"),
    "text": (lambda path, dice: path.write_text("weights\n"), NO_END),
    "weights": (lambda path, dice: torch.save({"weight": torch.zeros(3)}, path), NO_END),
    "code": (harm, "does not read as tensors and plain values"),
    "not of torch": (unreadable, "does not read as tensors and plain values"),
    "a folder": (lambda path, dice: (path.unlink(), path.mkdir()), "does not read .*Is a directory"),
    "another format": (lambda path, dice: write(path, {"format": "pretrained"}), "but no checkpoint of a run"),
    "another version": (lambda path, dice: write(path, {"version": 7}), "version 7; this program reads version 1"),
    "a part": (lambda path, dice: write(path, {"place": {}, "trained": {}}), None),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_checkpoint_is_refused_by_name_and_the_previous_one_used(name, made, folder, capfd, dice):
    spoil, reason = UNSOUND[name]
    spoil(folder / LAST, dice)
    if reason is None:  # it reads, and the run finds what is wrong with it
        assert read(folder / LAST)
        reason = "it lacks each, identity"
    else:
        with pytest.raises(RefusedError, match=reason):
            read(folder / LAST)
    if (folder / LAST).is_dir():  # which no new checkpoint can replace
        (folder / LAST).rmdir()
        (folder / "step-0000000013.pt").mkdir()
    job = Job(seed=50)
    result = job.fit(folder, epochs=2, resume=True)
    out, err = capfd.readouterr()
    assert not out  # the code in a checkpoint has not run
    first, second = err.splitlines()
    assert first.startswith(f"{folder}/step-00000000")
    assert re.search(f" is refused: .*{reason}", first)
    assert second == f"continuing from {folder / BEFORE}"
    assert result.resumed == folder / BEFORE
    assert job.steps == 2
    assert all(torch.equal(weight, made[1][name]) for name, weight in job.weights().items())
    assert read(folder / LAST)["place"] == {"step": 12, "epoch": 2, "batch": 0}  # a sound one took its place


def test_a_changed_or_missing_byte_anywhere_is_refused(made, tmp_path, dice):
    data, spoilt = (made[0] / LAST).read_bytes(), tmp_path / LAST
    for position in [0, len(data) - 1, *dice.sample(range(len(data)), 200)]:
        other = bytes([data[position] ^ dice.randrange(1, 256)])
        for changed in (other, b"", other + data[position : position + 1]):
            spoilt.write_bytes(data[:position] + changed + data[position + 1 :])
            with pytest.raises(RefusedError, match=r"damaged|cut short"):
                read(spoilt)


def test_where_none_is_sound_the_run_does_not_start_anew(folder, dice):
    cut(folder / LAST, dice)
    flip(folder / BEFORE, dice)
    with pytest.raises(UserError, match=f"{LAST} is refused: .*{BEFORE} is refused: ") as refused:
        Job().fit(folder, resume=True)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir(folder)) == [BEFORE, LAST]


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(folder, tmp_path):
    wide = Job()
    wide.network[0][0] = torch.nn.Linear(6, 20, bias=False)
    with pytest.raises(UserError, match=r"another model: 0.0.weight has shape \[16, 6\] there, \[20, 6\] here"):
        wide.fit(folder, resume=True)
    plain = Job()
    plain.optimizer = torch.optim.SGD(plain.network.parameters(), 0.1)
    with pytest.raises(UserError, match="another run: optimizer is 'Adam' there, 'SGD' here"):
        plain.fit(folder, resume=True)
    frozen = Job()
    frozen.optimizer = torch.optim.Adam(frozen.network[0].parameters())
    with pytest.raises(UserError, match=r"its optimiser has groups of \[3\] parameters; wanted \[2\]"):
        frozen.fit(folder, resume=True)
    drawn = Job()
    drawn.loader = torch.utils.data.DataLoader(drawn.loader.dataset, 8, shuffle=True)
    with pytest.raises(UserError, match="another run: generators is 2 there, 1 here"):
        drawn.fit(folder, resume=True)
    unscaled = Job()
    unscaled.scaler = None
    with pytest.raises(UserError, match="it holds average, scaler, schedule 0 beside the model; wanted average, sched"):
        unscaled.fit(folder, resume=True)
    Job().fit(tmp_path / "set", epochs=1, settings={"widths": (16, 8), "strength": 0.1})
    Job().fit(tmp_path / "set", epochs=1, settings={"widths": [16, 8], "strength": 0.1}, resume=True)
    with pytest.raises(UserError, match=r"another run: strength is 0.1 there, 0.3 here"):
        Job().fit(tmp_path / "set", epochs=1, settings={"widths": (16, 8), "strength": 0.3}, resume=True)


def test_a_checkpoint_is_a_file_of_tensors_and_plain_values(made):
    content = torch.load(made[0] / LAST, weights_only=True)
    assert content["format"] == "xattr_cuda checkpoint"
    assert content["place"] == {"step": 12, "epoch": 2, "batch": 0}
    assert all(torch.equal(content["trained"]["model"][name], made[1][name]) for name in content["trained"]["model"])


def test_what_cannot_be_read_without_running_code_is_not_written(tmp_path):
    folder = Folder(tmp_path)
    folder.save({"a": torch.ones(2)}, 1)
    with pytest.raises(TypeError, match=r"holds tensors and plain values; given .*PosixPath"):
        folder.save({"path": Path("here")}, 2)
    assert os.listdir(tmp_path) == ["step-0000000001.pt"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as file:
            file.write(b"ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_only_old_checkpoints_are_removed(tmp_path):
    folder = Folder(tmp_path, keep=2)
    (tmp_path / "step-9.pt").touch()
    (tmp_path / "notes.pt").touch()
    (tmp_path / ".step-0000000004.pt.123.tmp").touch()  # of a process killed while it wrote
    folder.tidy()
    for step in (50, 1, 2, 3):  # 50: newer than all, of a run that went on from before it
        folder.save({}, step)
    kept = ["notes.pt", "step-0000000002.pt", "step-0000000003.pt", "step-0000000050.pt", "step-9.pt"]
    assert sorted(os.listdir(tmp_path)) == kept
    folder.clear()
    assert sorted(os.listdir(tmp_path)) == ["notes.pt", "step-9.pt"]
