"""CIFAR-10 and CIFAR-100 in the forms that their author publishes, written here with fewer pictures; and fetching them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from vitcore.data.datasets import Dataset, open_dataset
from vitcore.data.formats import download
from vitcore.data.formats.cifar import LAYOUTS, Form
from vitcore.data.formats.download import Published
from vitcore.data.formats.pickled import Refused, read_pickle
from vitcore.errors import VitcoreError

RECORDS = 6
PUBLISHED = dict(LAYOUTS)
RNG = np.random.default_rng(0)
FORMS = [(name, form) for name, layout in LAYOUTS.items() for form in layout.forms]
IDS = [f"{name}-{form.folder}" for name, form in FORMS]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of six records and not of thousands."""
    for name, layout in LAYOUTS.items():
        monkeypatch.setitem(LAYOUTS, name, dataclasses.replace(layout, train_records=RECORDS, test_records=RECORDS))


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and arrays as NumPy did then: as the published files are."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes) -> None:
        if len(text) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text)
        else:
            self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(text)

    dispatch[bytes] = save_string

    def save_array(self, values: np.ndarray) -> None:
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.MARK)
        self.write(pickle.GLOBAL + b"numpy\nndarray\n")
        self.save((0,))
        self.save(b"b")
        self.write(pickle.TUPLE + pickle.REDUCE + pickle.MARK + pickle.BININT1 + b"\1")
        self.save(values.shape)
        self.write(pickle.GLOBAL + b"numpy\ndtype\n")
        self.save((b"u1", 0, 1))
        self.write(pickle.REDUCE)
        self.save((3, b"|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(values.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[np.ndarray] = save_array


def python2(value: Any) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol=2).dump(value)
    return out.getvalue()


@functools.lru_cache
def content(name: str, form: Form) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of a form, and all their pictures and labels: training, then test."""
    layout = LAYOUTS[name]
    names = [f"class {number}".encode() for number in range(layout.classes)]
    files: dict[str, bytes] = {}
    all_images, all_labels = [], []
    for file in (*form.train, form.test):
        images = RNG.integers(0, 256, (RECORDS, 3072), dtype=np.uint8)
        labels = RNG.integers(0, layout.classes, RECORDS)
        labels[0] = layout.classes - 1
        if form.pickled:
            other = {b"coarse_labels": [0] * RECORDS} if layout.label_bytes == 2 else {}
            held = {b"batch_label": b"a batch", b"data": images, layout.labels_key: labels.tolist(), **other}
            files[file] = python2(held)
        else:
            coarse = [np.full((RECORDS, 1), 7, np.uint8)] * (layout.label_bytes - 1)
            files[file] = np.hstack([*coarse, labels[:, None].astype(np.uint8), images]).tobytes()
        all_images.append(images)
        all_labels.append(labels)
    files[form.names] = python2({layout.names_key: names}) if form.pickled else b"\n".join(names) + b"\n\n"
    return files, np.concatenate(all_images).reshape(-1, 3, 32, 32), np.concatenate(all_labels)


def unpacked(root: Path, name: str, form: Form) -> Path:
    folder = root / form.folder
    folder.mkdir(parents=True)
    for file, data in content(name, form)[0].items():
        (folder / file).write_bytes(data)
    return folder


def packed(
    root: Path, name: str, form: Form, change: Callable[[str, bytes], bytes | None] = lambda _, data: data
) -> Path:
    path = root / form.published.file_name
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo(form.folder)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for file, data in content(name, form)[0].items():
            changed = change(file, data)
            if changed is not None:
                member = tarfile.TarInfo(f"{form.folder}/{file}")
                member.size = len(changed)
                tar.addfile(member, io.BytesIO(changed))
    return path


def open_cifar(name: str, root: Path | None, **options: Any) -> Dataset:
    return open_dataset(name, img_size=32, channels=3, data_path=root, workers=0, **options)


def check(data: Dataset, name: str, form: Form) -> None:
    _, images, labels = content(name, form)
    count = len(form.train) * RECORDS
    assert (len(data.train), len(data.eval), data.num_classes) == (count, RECORDS, LAYOUTS[name].classes)
    assert data.class_names[1] == "class 1"
    for split, rows in ((data.train, slice(count)), (data.eval, slice(count, None))):
        indices = np.arange(len(split))
        got, its_labels, weight = split.load(indices, indices, 0, None)
        assert torch.equal(got, torch.from_numpy(images[rows])) and bool(weight.all())
        assert its_labels.tolist() == labels[rows].tolist()


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_every_form_is_read_unpacked_packed_and_as_the_folder_itself(name: str, form: Form, tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "a", name, form)
    (tmp_path / "b").mkdir()
    packed(tmp_path / "b", name, form)
    for root in (tmp_path / "a", tmp_path / "b", folder):
        check(open_cifar(name, root), name, form)


def test_what_is_published_is_of_the_published_sizes() -> None:
    for name, label_bytes in (("cifar10", 1), ("cifar100", 2)):
        layout = PUBLISHED[name]
        assert (layout.label_bytes, layout.test_records) == (label_bytes, 10_000)
        for form in layout.forms:
            assert len(form.train) * layout.train_records == 50_000
            assert 168_000_000 < form.published.size < 171_000_000 and len(form.published.md5) == 32
            assert form.published.url.startswith("https://www.cs.toronto.edu/~kriz/cifar-10")


def test_a_picture_is_a_view_of_one_array_and_where_names_the_place(tmp_path: Path) -> None:
    name, form = FORMS[0]
    path = packed(tmp_path, name, form)
    source = open_cifar(name, tmp_path).eval._source  # type: ignore[attr-defined]
    assert source.read(0).base is not None and source.read(0).shape == (3, 32, 32)
    assert source.where(2) == f"{path}: {form.folder}/test_batch.bin: picture 2"


def test_missing_files_are_named_with_their_address_and_size(tmp_path: Path) -> None:
    for root, begin in (
        (None, "cifar10: no data path; give the folder that holds "),
        (tmp_path, f"cifar10: {tmp_path} holds no"),
    ):
        with pytest.raises(VitcoreError) as caught:
            open_cifar("cifar10", root)
        line = str(caught.value)
        assert line.startswith(begin) and "--download" in line
        assert "cifar-10-binary.tar.gz (170 MB, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz)" in line
        assert "cifar-10-python.tar.gz (170 MB, " in line


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_a_file_that_lacks_a_byte_or_a_record_is_named(name: str, form: Form, tmp_path: Path) -> None:
    folder = unpacked(tmp_path, name, form)
    path = folder / form.train[-1]
    whole = path.read_bytes()
    fewer = {b"data": np.zeros((RECORDS - 1, 3072), np.uint8), LAYOUTS[name].labels_key: [0] * (RECORDS - 1)}
    for damaged in (whole[:-1], whole[:100], b"", python2(fewer) if form.pickled else whole[: -3072 - 1]):
        path.write_bytes(damaged)
        with pytest.raises(VitcoreError, match=f"{path}: .*fetch {form.published.file_name} ") as caught:
            open_cifar(name, tmp_path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(VitcoreError, match=f"{path}: it cannot be read .No such file"):
        open_cifar(name, tmp_path)


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_a_label_out_of_range_is_named(name: str, form: Form, tmp_path: Path) -> None:
    folder, layout = unpacked(tmp_path, name, form), LAYOUTS[name]
    path = folder / form.test
    if form.pickled:
        held = {b"data": np.zeros((RECORDS, 3072), np.uint8), layout.labels_key: [0, 1, layout.classes, 0, 0, 0]}
        path.write_bytes(python2(held))
    else:
        data = bytearray(path.read_bytes())
        data[2 * (3072 + layout.label_bytes) + layout.label_bytes - 1] = layout.classes
        path.write_bytes(data)
    with pytest.raises(VitcoreError, match=f"{path}: picture 2 has label {layout.classes}, classes are 0 to "):
        open_cifar(name, tmp_path)


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_wrong_names_of_classes_are_named(name: str, form: Form, tmp_path: Path) -> None:
    path = unpacked(tmp_path, name, form) / form.names
    for names in ([b"one"], [b"x"] * (LAYOUTS[name].classes + 1), [3] * LAYOUTS[name].classes):
        text = b"\n".join(str(n).encode() for n in names[:5])
        path.write_bytes(python2({LAYOUTS[name].names_key: names}) if form.pickled else text)
        with pytest.raises(VitcoreError, match=f"{path}: it names . ?classes|{path}: it names "):
            open_cifar(name, tmp_path)


def test_an_archive_that_is_cut_or_lacks_a_file_or_holds_too_large_a_one_is_named(tmp_path: Path) -> None:
    name, form = FORMS[0]
    path = packed(tmp_path, name, form)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises(VitcoreError, match=f"{path}: it is no whole archive .*fetch cifar-10-binary.tar.gz"):
            open_cifar(name, tmp_path)
    packed(tmp_path, name, form, lambda file, data: None if file == "data_batch_3.bin" else data)
    with pytest.raises(VitcoreError, match=f"{path}: it lacks cifar-10-batches-bin/data_batch_3.bin; fetch"):
        open_cifar(name, tmp_path)
    packed(tmp_path, name, form, lambda file, data: data[:-1] if file == "test_batch.bin" else data)
    with pytest.raises(VitcoreError, match=f"{path}: cifar-10-batches-bin/test_batch.bin: it has 18437 bytes"):
        open_cifar(name, tmp_path)


def test_a_member_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    name, form = FORMS[0]
    path = tmp_path / form.published.file_name
    member = tarfile.TarInfo(f"{form.folder}/data_batch_1.bin")
    member.size = 1 << 40
    with tarfile.open(path, "w:gz") as tar:
        tar.fileobj.write(member.tobuf())  # type: ignore[union-attr]
    with pytest.raises(VitcoreError, match="is larger than any file of CIFAR"):
        open_cifar(name, tmp_path)


# What a pickle may not say. Each would leave a file, or take memory, were it believed.
class Hostile:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.args


def test_a_hostile_pickle_is_refused_by_name_and_nothing_of_it_is_called(tmp_path: Path) -> None:
    name, form = FORMS[1]
    path = unpacked(tmp_path, name, form) / form.train[0]
    trace = tmp_path / "trace"
    import os

    for call, args in (
        (os.system, (f"touch {trace}",)),
        (eval, (f"open({str(trace)!r}, 'w')",)),
        (open, (str(trace), "w")),
    ):
        path.write_bytes(pickle.dumps({b"data": Hostile(call, *args)}, protocol=2))
        with pytest.raises(
            VitcoreError, match=rf"{path}: it is not CIFAR's pickle \(it asks for (posix|__builtin__|io)\.\w+\)"
        ):
            open_cifar(name, tmp_path)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "it asks for os.system"),
        (b"cnumpy\nload\n(S'x'\ntR.", "it asks for numpy.load"),
        (b"cnumpy\nndarray\n((K\x0atR.", "numpy.ndarray is called|no whole pickle"),
        (b"cnumpy\nndarray\n(K\x0atR.", "numpy.ndarray is called"),
        (b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "an array of b'O8'"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "another encoding than latin1"),
        (b"cnumpy\ndtype\n}U\x05_callU\x01xsb.", "it would change a function"),
        (b"cnumpy\ndtype\nN}X\x05\x00\x00\x00_callK\x01s\x86b.", "it would change a function"),
        (b"(icollections\nOrderedDict\n.", "it uses the instruction INST"),
        (b"\x80\x02\x82\x01.", "it uses the instruction EXT1"),
        (b"Pabc\n.", "it uses the instruction PERSID"),
        (b"\x80\x05\x96\xff\xff\xff\xff\x07\x00\x00\x00.", "it uses the instruction BYTEARRAY8"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "it holds a list and no dict"),
        (b"\x80\x02}", "it is no whole pickle"),
        (b"", "it is no whole pickle"),
        (b"\xff", "it is no whole pickle"),
    ],
)  # fmt: skip
def test_what_a_pickle_may_not_say(data: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_pickle(data)


def test_arrays_whose_shape_is_not_that_of_their_bytes_are_refused() -> None:
    def array(shape: Any, dtype: bytes = b"u1", data: bytes = b"abc") -> bytes:
        out = io.BytesIO()
        writer = Python2(out, protocol=2)
        writer.write(b"\x80\x02}U\x04data" + pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n)R(K\1")
        writer.save(shape)
        writer.write(pickle.GLOBAL + b"numpy\ndtype\n")
        writer.save((dtype, 0, 1))
        writer.write(pickle.REDUCE)
        writer.save(False)
        writer.save(data)
        writer.write(b"tbs.")
        return out.getvalue()

    assert read_pickle(array((3,)))[b"data"].values.tolist() == [97, 98, 99]
    for shape in ((4,), (1 << 40, 1 << 40), (-3,), (-1, -3), ("3",), [3], (3.0,), (True, 3)):
        with pytest.raises(Refused, match="is not as long as its bytes"):
            read_pickle(array(shape))
    with pytest.raises(Refused, match="where CIFAR's hold bytes"):
        read_pickle(array((3,), b"f8"))


def test_pickles_that_this_python_writes_of_the_same_are_read_too() -> None:
    for protocol in (2, 3, 4):
        held = read_pickle(
            pickle.dumps({"labels": [1, 2], b"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}, protocol)
        )
        assert held[b"labels"] == [1, 2] and held[b"data"].values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address, and the folder whose files it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}", folder
    serving.shutdown()
    thread.join()
    serving.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, path: Path) -> None:
    """Let CIFAR-10's first form be at an address of this machine."""
    data, layout = path.read_bytes(), LAYOUTS["cifar10"]
    published = Published(f"{url}/{path.name}", len(data), hashlib.md5(data).hexdigest())
    forms = (dataclasses.replace(layout.forms[0], published=published), *layout.forms[1:])
    monkeypatch.setitem(LAYOUTS, "cifar10", dataclasses.replace(layout, forms=forms))


def test_a_download_that_was_asked_for_is_checked_kept_and_not_repeated(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = server
    name, form = FORMS[0]
    path = packed(folder, name, form)
    publish(monkeypatch, url, path)
    root = tmp_path / "data"
    with pytest.raises(VitcoreError, match="holds no files of it"):
        open_cifar(name, root)
    check(open_cifar(name, root, download=True), name, form)
    assert [p.name for p in root.iterdir()] == [path.name] and (root / path.name).read_bytes() == path.read_bytes()
    assert "vitcore: fetching cifar-10-binary.tar.gz: 100 %" in capsys.readouterr().err.splitlines()
    path.unlink()
    check(open_cifar(name, root, download=True), name, form)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], r"is not the published file \(\d+ bytes, not \d+\)"),
        (lambda data: data + b"!", r"is not the published file \(\d+ bytes, not \d+\)"),
        (lambda data: data[:-1] + b"!", r"is not the published file \(MD5 \w{32}, not \w{32}\)"),
        (None, r"could not be fetched \(.*(Not Found|File not found)"),
    ],
)  # fmt: skip
def test_a_download_that_is_not_what_was_published_leaves_nothing(
    change: Any, words: str, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    path = packed(folder, *FORMS[0])
    publish(monkeypatch, url, path)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    root = tmp_path / "data"
    with pytest.raises(VitcoreError, match=words) as caught:
        open_cifar("cifar10", root, download=True)
    assert str(caught.value).startswith("cifar10: ") and "\n" not in str(caught.value)
    assert not [p for p in root.iterdir() if not p.name.endswith(".lock")]


def test_without_a_network_the_address_and_the_remedy_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served").mkdir()
    path = packed(tmp_path / "served", *FORMS[0])
    publish(monkeypatch, "http://127.0.0.1:9", path)
    with pytest.raises(
        VitcoreError, match=r"cifar10: http://127.0.0.1:9/cifar-10-binary.tar.gz could not be fetched \(.*refused"
    ):
        open_cifar("cifar10", tmp_path / "data", download=True)


def test_of_two_that_fetch_one_does_and_the_other_waits(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    path = packed(folder, *FORMS[0])
    published = Published(f"{url}/{path.name}", path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
    fetched: list[Path] = []
    whole = download._fetch
    monkeypatch.setattr(download, "_fetch", lambda *args: (fetched.append(args[2]), whole(*args)))
    threads = [
        threading.Thread(target=download.fetch, args=("cifar10", published, tmp_path / "data")) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [tmp_path / "data" / path.name]
