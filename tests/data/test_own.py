"""Data sets of the user's own: arrays, files, folders, what TFDS has prepared, functions."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jprune import data, errors
from jprune.data import fetch, store, table
from jprune.data.own import from_arrays

CLASSES = 3


def arrays(count=60, shape=(5, 4, 3), dtype=np.uint8):
    """Images whose first pixel is their number, and labels modulo 3."""
    images = np.zeros((count, *shape), dtype)
    images[:, 0, 0, 0] = np.arange(count)
    return images, np.arange(count) % CLASSES


def first_pixels(loaded, split, top=255):
    batch = next(loaded.batches(split, loaded.sizes[split]))
    return np.round(batch["image"][:, 0, 0, 0] * top).astype(int).tolist(), batch["label"]


# Arrays


def test_missing_splits_are_drawn_by_class_and_once_and_for_all():
    loaded = from_arrays({"train": arrays()}, test=0.2, validation=0.25)
    assert loaded.sizes == {"train": 36, "validation": 12, "test": 12}
    pixels = [first_pixels(loaded, split) for split in loaded.sizes]
    assert sorted(number for numbers, _ in pixels for number in numbers) == list(range(60))
    for numbers, labels in pixels:
        assert labels.tolist() == [number % CLASSES for number in numbers]
        assert len(set(np.bincount(labels))) == 1
    again = from_arrays({"train": arrays()}, test=0.2, validation=0.25)
    assert first_pixels(again, "test")[0] == first_pixels(loaded, "test")[0]
    assert loaded.about == ("test: 20 % of the training examples; validation: 25 % of the others")


def test_splits_that_are_there_stay_as_they_are():
    train, rest = arrays(30), (arrays(50)[0][30:], np.arange(30, 50) % CLASSES)
    loaded = from_arrays({"train": train, "test": rest})
    assert loaded.sizes == {"train": 27, "validation": 3, "test": 20}
    assert first_pixels(loaded, "test")[0] == list(range(30, 50))
    assert loaded.about == "validation: 10 % of the training examples"


def test_floats_are_taken_as_they_are_and_normalised():
    images = np.random.default_rng(0).normal(size=(40, 3, 2)).astype(np.float64)
    loaded = from_arrays({"train": (images, np.arange(40)[:, None] % 2)}, mean=0.5, std=2.0)
    assert loaded.shape == (3, 2, 1)
    batch = next(loaded.batches("train", 40))
    assert batch["image"].dtype == np.float32
    kept = [row for row in batch["image"][batch["weight"] > 0, ..., 0]]
    right = (images - 0.5) / 2
    assert all(np.isclose(right, row, atol=1e-6).all((1, 2)).any() for row in kept)


def test_labels_that_are_no_classes_keep_their_shape_and_type():
    images, _ = arrays(20)
    for labels in (np.linspace(-3, 3, 20), images[..., 0].astype(np.int64)):
        loaded = from_arrays({"train": (images, labels)}, classes=0)
        assert loaded.classes == 0
        numbers, batch_labels = first_pixels(loaded, "test")
        assert batch_labels.dtype == (np.float32 if labels.ndim == 1 else np.int32)
        np.testing.assert_allclose(batch_labels, labels[numbers], rtol=1e-6)


IMAGES, LABELS = arrays()


@pytest.mark.parametrize(
    ("images", "labels", "options", "says"),
    [
        (IMAGES, LABELS + 1, {}, "labels 1..3, and no training image of class 0"),
        (IMAGES, LABELS - 1, {}, "labels -1..1; expected 0..1"),
        (IMAGES, LABELS, {"classes": 2}, "labels 0..2; expected 0..1"),
        (IMAGES, LABELS * 0, {}, "no training image of class 1"),
        (IMAGES, np.eye(3)[LABELS], {}, "labels.argmax(-1) for one-hot"),
        (IMAGES, LABELS / 2, {}, "labels float64[60]; expected whole numbers"),
        (IMAGES, LABELS[:-1], {}, "60 images and 59 labels"),
        (IMAGES[:, 0, 0], LABELS, {}, "uint8[60, 3]; expected uint8 (0..255) or floats, [n, h, w"),
        (IMAGES.astype(np.int64), LABELS, {}, "write images.astype(np.uint8)"),
        (IMAGES * 255.0, LABELS, {}, "floats of up to 15045 as pixels"),
        (IMAGES * 4.0, LABELS, {}, "Write top=255"),
        (IMAGES / 255 + np.nan, LABELS, {}, "take out what is not finite"),
        (IMAGES / 255, LABELS, {"size": 8}, "size and channels convert 8-bit pixels alone"),
        (IMAGES, LABELS, {"mean": (0.1, 0.2)}, "mean has 2 numbers, and the images of arrays have"),
        (IMAGES, LABELS, {"std": 0.0}, "std=0.0; write numbers above 0"),
        (IMAGES, LABELS, {"sice": 8}, "no option 'sice'; did you mean size?"),
        (IMAGES, LABELS, {"size": (8, 0)}, "write (height, width) in pixels"),
        (IMAGES, LABELS, {"test": 0.001}, "takes 0 for the split test"),
        (IMAGES[:0], LABELS[:0], {}, "at least one"),
        (IMAGES, LABELS * np.nan, {"classes": 0}, "labels or pixels that are not finite"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(images, labels, options, says):
    with pytest.raises(errors.JpruneError) as caught:
        from_arrays({"train": (images, labels)}, **options)
    assert says.lower() in str(caught.value).lower()


# Files


def test_npz_takes_the_usual_names(tmp_path):
    images, labels = arrays()
    for names in (("x_train", "y_train", "x_test", "y_test"),
                  ("train_images", "train_labels", "test_images", "test_labels")):  # fmt: skip
        parts = (images[:40], labels[:40], images[40:], labels[40:])
        np.savez(tmp_path / "a.npz", **dict(zip(names, parts)))
        loaded = data.load(f"npz:{tmp_path}/a.npz")
        assert loaded.sizes == {"train": 36, "validation": 4, "test": 20}
        assert first_pixels(loaded, "test")[0] == list(range(40, 60))
    np.savez(tmp_path / "b.npz", images=images, labels=labels)
    loaded = data.load(f"npz:{tmp_path}/b.npz", size=(8, 6), channels=1, shift=1)
    assert (loaded.shape, loaded.classes) == ((8, 6, 1), CLASSES)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"images": IMAGES}, "no labels for the split train; it has images"),
        ({"a": IMAGES, "labels": LABELS}, "an array 'a', and nothing says which"),
        ({"images": IMAGES, "x": IMAGES, "labels": LABELS}, "an array 'x'"),
        ({"images": IMAGES, "labels": np.array([None] * 60)}, "cannot be read as .npz"),
    ],
)
def test_npz_of_something_else_is_refused(tmp_path, parts, says):
    np.savez(tmp_path / "a.npz", **parts)
    with pytest.raises(errors.DataError, match=says):
        data.load(f"npz:{tmp_path}/a.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    for file in ("a.npz", "none.npz"):
        with pytest.raises(errors.DataError, match=r"cannot be read as \.npz"):
            data.load(f"npz:{tmp_path}/{file}")


def pictures(root, splits=("",), size=(7, 6), classes=("ant", "bee")):
    """Folders of pictures: those of a class have one colour."""
    for split in splits:
        for number, name in enumerate(classes):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(10):
                image = np.full((*size, 3), (100 * number, 50, index), np.uint8)
                Image.fromarray(image).save(place / f"{index}.png")
    return root


def test_a_folder_a_class(tmp_path):
    loaded = data.load(f"folder:{pictures(tmp_path / 'flat')}", size=(4, 3), mean=0.5, std=0.25)
    assert loaded.sizes == {"train": 16, "validation": 2, "test": 2}
    assert (loaded.shape, loaded.classes) == ((4, 3, 3), 2)
    batch = next(loaded.batches("train", 16))
    red = np.round((batch["image"][:, 0, 0, 0] * 0.25 + 0.5) * 255)
    assert (red == 100 * batch["label"]).all()
    split = data.load(f"folder:{pictures(tmp_path / 'split', ('train', 'val', 'test'))}")
    assert split.sizes == {"train": 20, "validation": 20, "test": 20}
    assert split.about == ""


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    def said(**options):
        with pytest.raises(errors.DataError) as caught:
            data.load(f"folder:{tmp_path}/a", **options)
        return str(caught.value)

    assert "there is no folder" in said()
    root = pictures(tmp_path / "a")
    Image.fromarray(np.zeros((9, 6, 3), np.uint8)).save(root / "bee" / "larger.png")
    assert "larger.png is [9, 6, 3]" in said()
    assert "size=32:32" in said()
    (root / "bee" / "notes.txt").write_text("")
    assert "notes.txt is no image file" in said(size=8)
    (root / "bee" / "notes.txt").rename(root / "bee" / "broken.png")
    assert "broken.png is no image that Pillow reads" in said(size=8)
    (root / "train").mkdir()
    assert "has folders of splits (train) and ant" in said()
    pictures(tmp_path / "b", ("train",))
    pictures(tmp_path / "b", ("test",), classes=("ant", "cat"))
    with pytest.raises(errors.DataError, match="the classes ant, cat; expected ant, bee"):
        data.load(f"folder:{tmp_path}/b")


# What TFDS has prepared


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Encoded images of several sizes, as official builders write them."""

    name = "photos"
    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(6)}

    def _generate_examples(self, count):
        for number in range(count):
            stream = io.BytesIO()
            pixels = np.full((6 + number % 2, 7, 3), 100 * (number % 2), np.uint8)
            Image.fromarray(pixels).save(stream, "png")
            stream.seek(0)
            yield number, {"image": stream, "label": number % 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    home = tmp_path_factory.mktemp("tfds")
    with store._quiet():
        Photos(data_dir=str(home), file_format="array_record").download_and_prepare()
    return home


def test_a_set_that_tfds_has_prepared(photos, monkeypatch):
    for name, where in (("photos", photos), ("photos:2.1.0", None)):
        monkeypatch.setenv("TFDS_DATA_DIR", str(photos))
        loaded = data.load(f"tfds:{name}", where, size=5)
        assert loaded.sizes == {"train": 18, "validation": 2, "test": 6}
        batch = next(loaded.batches("test", 6))
        assert batch["image"].shape == (6, 5, 5, 3)
        assert (np.round(batch["image"][:, 0, 0, 0] * 255) == 100 * batch["label"]).all()
    with pytest.raises(errors.DataError, match=r"Write size=32:32"):
        data.load("tfds:photos", photos)
    with pytest.raises(errors.DataError, match=r"tfds:fotos is not prepared in .*array_record"):
        data.load("tfds:fotos", photos)
    with pytest.raises(errors.DataError, match=r"tfds:photos:9.9.9 is not prepared"):
        data.load("tfds:photos:9.9.9", photos)


def test_a_set_of_ours_is_one_that_tfds_has_prepared(tmp_path):
    images, labels = arrays(30, (28, 28, 1))
    split = data.Split(images, labels.astype(np.int32))
    store.write(table.find("mnist"), {"train": split, "test": split}, tmp_path)
    loaded = data.load("tfds:mnist", tmp_path)
    assert first_pixels(loaded, "test")[0] == list(range(30))


# Functions


OWN = """
import numpy as np
from jprune import data

def load(count=40):
    images = np.zeros((count, 4, 5, 1), np.uint8)
    return data.from_arrays({"train": (images, np.arange(count) % 2)})

def list_():
    return [1, 2]

def broken():
    raise RuntimeError("no disk")

def wrong():
    return load()._replace(shape=(5, 5, 1))
"""


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data_sets.py").write_text(OWN)
    assert data.load("own_data_sets:load").sizes["train"] == 32
    loaded = data.load("own_data_sets:load", count=50)
    assert (loaded.name, loaded.sizes["train"]) == ("own_data_sets:load", 41)
    for name, options, says in (
        ("own_data_sets:list_", {}, r"returned a list; expected a jprune.base.Data"),
        ("own_data_sets:broken", {}, r"failed: RuntimeError: no disk"),
        ("own_data_sets:load", {"size": 3}, r"load\(size=3\) failed: TypeError"),
        ("own_data_sets:wrong", {}, r"gave a batch of train with .*expected image \(2, 5, 5, 1\)"),
        ("own_data_sets:none", {}, r"has no callable 'none'"),
        ("no_module_here:load", {}, r"No module named 'no_module_here'"),
    ):
        with pytest.raises(errors.JpruneError, match=says):
            data.load(name, **options)


def test_sets_by_name_take_no_options():
    with pytest.raises(errors.ArgumentError, match=r"digits has fixed sizes.*no option 'size'"):
        data.load("digits", size=16)
    with pytest.raises(errors.ArgumentError, match=r"subset=5 is for the sets by name"):
        data.load("npz:a.npz", subset=5)


# CIFAR-100


def test_cifar100_is_prepared_from_the_archive_of_its_authors(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    files = {
        name: rng.integers(0, 100, (count, 3074)).astype(np.uint8)
        for name, count in (("train.bin", 20), ("test.bin", 10))
    }
    source = tmp_path / "source"
    source.mkdir()
    archive = source / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as package:
        for name, rows in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = rows.size
            package.addfile(member, io.BytesIO(rows.tobytes()))
    sizes = {"train": 15, "validation": 5, "test": 10}
    monkeypatch.setitem(table.SETS, "cifar100", table.find("cifar100")._replace(sizes=sizes))
    with pytest.raises(errors.DataError, match=r"has sha256 .*expected 58a81ae1"):
        data.prepare("cifar100", tmp_path, source)
    whole = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(fetch.ORIGINS, "cifar100", fetch.ORIGINS["cifar100"]._replace(whole=whole))
    target = data.prepare("cifar100", tmp_path, source)
    read = store.read(table.find("cifar100"), target)["test"]
    assert read.labels.tolist() == files["test.bin"][:, 1].tolist()
    pixels = files["test.bin"][:, 2:].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(read.images[:, 3, 5], pixels[:, :, 3, 5])
    assert data.load("cifar100", tmp_path).classes == 100
    archive.unlink()
    with pytest.raises(errors.DataError, match=r"Put there the archive as its authors publish it"):
        data.prepare("cifar100", tmp_path / "other", source)
    with pytest.raises(errors.DataError, match=r"no package has cifar100.*--from DIR"):
        data.prepare("cifar100", tmp_path / "other")
