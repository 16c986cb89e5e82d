"""Files of any bytes: each parser either reads a file or refuses it with a VitcoreError of one line, and calls nothing."""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import pickletools
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.data.datasets import open_dataset
from vitcore.data.formats import idx, pickled
from vitcore.data.formats.cifar import LAYOUTS, Form
from vitcore.data.formats.devkit import read_devkit
from vitcore.data.formats.shards import read_shard
from vitcore.errors import VitcoreError

LIGHT = settings(max_examples=150, deadline=None)
# A change of a whole file: (place, what stands there then) several times, then a cut, then what follows the end.
MUTATIONS = st.tuples(
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), max_size=4),
    st.none() | st.integers(0, 1 << 16),
    st.binary(max_size=8),
)


def mutated(whole: bytes, mutation: tuple[list[tuple[int, bytes]], int | None, bytes]) -> bytes:
    changes, cut, more = mutation
    data = bytearray(whole)
    for place, piece in changes:
        place %= len(data)
        data[place : place + len(piece)] = piece
    return bytes(data if cut is None else data[: cut % (len(data) + 1)]) + more


def opened(call: Any, *args: Any) -> Any:
    """What a parser makes of a file, None where it refuses it in one line; any other exception is an error of the parser."""
    try:
        return call(*args)
    except VitcoreError as error:
        line = str(error)
        assert "\n" not in line and "; " in line and len(line) < 1500, line
        return None


def packed_idx(*shape: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes() + values.tobytes()


@LIGHT
@given(st.binary(max_size=64) | MUTATIONS.map(lambda m: mutated(packed_idx(3, 4, 5), m)), st.booleans())
def test_any_bytes_as_an_idx_file(data: bytes, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x-ubyte.gz" if zipped else "x-ubyte")
        path.write_bytes(gzip.compress(data) if zipped else data)
        values = opened(idx.read_idx, path)
        if values is not None:
            head = 4 + 4 * values.ndim
            assert data[head:] == values.tobytes() and data[:4] == bytes([0, 0, 8, values.ndim])
            pictures = opened(idx.as_pictures, path, values)
            assert pictures is None or (pictures.ndim == 4 and pictures.shape[1] in (1, 3))


@LIGHT
@given(MUTATIONS.map(lambda m: mutated(gzip.compress(packed_idx(3, 4, 5), mtime=0), m)))
def test_a_damaged_gzip_of_an_idx_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x-ubyte.gz")
        path.write_bytes(data)
        values = opened(idx.read_idx, path)
        assert values is None or values.shape == (3, 4, 5)


def shard(format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in (
            ("a.png", b"p" * 700),
            ("a.cls", b"1"),
            ("dir/" + "n" * 120 + ".jpg", b"q"),
            ("dir/" + "n" * 120 + ".cls", b"2"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()[:8192]


SHARDS = [shard(tarfile.GNU_FORMAT), shard(tarfile.PAX_FORMAT)]


@LIGHT
@given(st.binary(max_size=2000) | st.tuples(st.sampled_from(SHARDS), MUTATIONS).map(lambda pair: mutated(*pair)))
def test_any_bytes_as_a_shard(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        path.write_bytes(data)
        found = opened(read_shard, path)
        if found is not None:
            assert len(found.starts) == len(found.sizes) == len(found.labels) > 0
            assert all(s >= 0 and n >= 0 and s + n <= len(data) for s, n in zip(found.starts, found.sizes, strict=True))
            assert all(label >= 0 for label in found.labels)


def test_the_shards_that_are_mutated_are_whole(tmp_path: Path) -> None:
    for number, data in enumerate(SHARDS):
        (tmp_path / f"{number}.tar").write_bytes(data)
        assert read_shard(tmp_path / f"{number}.tar").labels == [1, 2]


LABELS = [0, 1, 2]
BATCH = {b"data": np.arange(3 * 3072, dtype=np.int64).astype(np.uint8).reshape(3, 3072), b"labels": LABELS}
NAMES = [b"class %d" % n for n in range(10)]


def cifar_folder(root: Path, form: Form, train: bytes, meta: bytes) -> None:
    (root / form.folder).mkdir()
    for file in (*form.train, form.test):
        (root / form.folder / file).write_bytes(train)
    (root / form.folder / form.names).write_bytes(meta)


@pytest.fixture(scope="module", autouse=True)
def few() -> Any:
    """Files of three records and not of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        for name, layout in LAYOUTS.items():
            patch.setitem(LAYOUTS, name, dataclasses.replace(layout, train_records=3, test_records=3))
        yield


WHOLE = {
    False: (b"".join(bytes([n]) + BATCH[b"data"][n].tobytes() for n in LABELS), b"\n".join(NAMES)),  # type: ignore[index]
    True: (pickle.dumps(BATCH, 2), pickle.dumps({b"label_names": NAMES}, 2)),
}


@settings(max_examples=80, deadline=None)
@given(st.booleans(), st.booleans(), MUTATIONS)
def test_any_change_of_a_cifar_file(pickled_form: bool, of_names: bool, mutation: Any) -> None:
    form = LAYOUTS["cifar10"].forms[int(pickled_form)]
    train, meta = WHOLE[pickled_form]
    train, meta = (train, mutated(meta, mutation)) if of_names else (mutated(train, mutation), meta)
    with tempfile.TemporaryDirectory() as name:
        cifar_folder(Path(name), form, train, meta)
        data = opened(lambda: open_dataset("cifar10", img_size=32, data_path=name, workers=0))
        assert data is None or (
            len(data.train) == 15 and data.num_classes == 10 and max(data.train._source.labels) < 10
        )


# Instructions of a pickle, in any order, with arguments of their kind and with names that would do harm.
HARM = [b"os\nsystem\n", b"builtins\neval\n", b"numpy\nload\n", b"numpy.core.multiarray\n_reconstruct\n", b"numpy\ndtype\n",
        b"numpy\nndarray\n", b"_codecs\nencode\n", b"builtins\ngetattr\n", b"copyreg\n_reconstructor\n"]  # fmt: skip
PIECES = st.one_of(
    st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes]),
    st.sampled_from([b"c" + name for name in HARM]),
    st.sampled_from(
        [
            b"K\x01",
            b"U\x02u1",
            b"U\x01b",
            b"N",
            b"(",
            b")",
            b"}",
            b"]",
            b"\x85",
            b"\x86",
            b"R",
            b"b",
            b"s",
            b"e",
            b"\x93",
        ]
    ),
    st.sampled_from([b"X\x06\x00\x00\x00system", b"X\x02\x00\x00\x00os", b"r\xff\xff\xff\xff", b"\x8a\x02\x00\x01"]),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PIECES, max_size=14).map(b"".join)
    | MUTATIONS.map(lambda m: mutated(pickle.dumps(NAMES, 2), m))
    | st.binary(max_size=40)
)
def test_any_program_of_a_pickle_calls_nothing(program: bytes) -> None:
    called: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.system", lambda *args: called.append(args))
        patch.setattr("builtins.eval", lambda *args: called.append(args))
        patch.setattr("numpy.load", lambda *args: called.append(args))
        for data in (program, program + b".", b"\x80\x02" + program + b"."):
            try:
                held = pickled.read_pickle(data)
            except pickled.Refused:
                continue
            assert isinstance(held, dict)
    assert not called


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600) | MUTATIONS.map(lambda m: mutated(SHARDS[0], m)))
def test_any_bytes_as_a_published_archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file in ("cifar-10-binary.tar.gz", "ILSVRC2012_devkit_t12.tar.gz"):
            Path(name, file).write_bytes(data)
        assert opened(lambda: open_dataset("cifar10", img_size=32, data_path=name, workers=0)) is None
        assert opened(read_devkit, Path(name, "ILSVRC2012_devkit_t12.tar.gz")) is None
