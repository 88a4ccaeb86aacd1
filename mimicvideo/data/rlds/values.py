"""Values of a record's features: numbers and texts through tfds' parser, pictures through libjpeg-turbo and Pillow."""

import contextlib
import functools
import hashlib
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from google.protobuf.message import DecodeError
from jaxtyping import UInt8
from PIL import Image

from mimicvideo.data.rlds.example import Damaged, byte_strings, pick
from mimicvideo.data.rlds.records import Record
from mimicvideo.data.rlds.schema import Column

HASHED_BYTES = 2**22  # at once
JPEG = b"\xff\xd8"  # what every JPEG file starts with
COLOURS = ("YCbCr", "RGB", "Gray")  # not those of print, which Pillow turns into RGB in another way


def read_values(record: Record, columns: Sequence[Column]) -> dict[Column, np.ndarray]:
    """Rows of numbers, [rows, *shape] in the type that features.json says, and texts as bytes, [rows]; nothing else is read.

    Raises:
        Damaged: If the record is no Example, or lacks a feature, or one is not what features.json says.
    """
    spans = record.features
    for column in columns:
        if column.stored not in spans:
            raise Damaged(f"it has no {column.stored!r}")
    content = pick(record.read, [spans[column.stored] for column in columns])
    try:
        parsed = _parser(tuple(columns)).parse_example(content)
        return {column: _unpacked(parsed[column.stored], column) for column in columns}
    except (DecodeError, AttributeError, KeyError, ValueError, TypeError, RuntimeError, zlib.error) as error:
        raise error if isinstance(error, Damaged) else Damaged(f"it cannot be parsed: {error}") from error


def count_rows(column: Column, record: Record) -> int:
    """Rows of a record, told by one of its columns.

    Raises:
        Damaged: If it cannot be read.
    """
    if column.kind == "number" and column.encoding == "none":
        return len(read_values(record, [column])[column])
    return len(picture_spans(record, column))


def picture_spans(record: Record, column: Column) -> list[tuple[int, int]]:
    """Where each row of a feature of pictures, texts or packed numbers starts and ends in the record.

    Raises:
        Damaged: If the record is no Example or lacks the feature.
    """
    if column.stored not in record.features:
        raise Damaged(f"it has no {column.stored!r}")
    return list(byte_strings(record.read, record.features[column.stored]))


def feature_digest(record: Record, column: Column) -> str:
    """SHA-256 of the bytes of one feature of a record.

    Raises:
        Damaged: If the record is no Example, lacks the feature or is shorter than it should be.
    """
    if column.stored not in record.features:
        raise Damaged(f"it has no {column.stored!r}")
    span, digest = record.features[column.stored], hashlib.sha256()
    for start in range(span.value_start, span.end, HASHED_BYTES):
        content = record.read(start, min(HASHED_BYTES, span.end - start))
        if len(content) != min(HASHED_BYTES, span.end - start):
            raise Damaged(f"it ends at byte {start + len(content)}")
        digest.update(content)
    return digest.hexdigest()


def decode_picture(content: bytes, into: UInt8[np.ndarray, "height width 3"] | None = None) -> UInt8[np.ndarray, "any_height any_width 3"]:
    """A JPEG or PNG picture as RGB.

    With `into`, JPEG goes straight to libjpeg-turbo, which then takes less than half of the time that it takes inside Pillow and gives the
    same pixels. What it refuses, such as a damaged file, Pillow decides on.

    Args:
        content: The file.
        into: A contiguous array of the size that the picture should have; its pixels are written there if they have it.

    Returns:
        `into` if it has the picture's size, otherwise a new array.

    Raises:
        Damaged: If it is none, or broken.
    """
    if into is not None and content[:2] == JPEG:
        with contextlib.suppress(ValueError):
            *size, colours, _ = simplejpeg.decode_jpeg_header(content)
            if tuple(size) == into.shape[:2] and colours in COLOURS:
                simplejpeg.decode_jpeg(content, buffer=into)
                return into
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise Damaged(f"no readable JPEG or PNG ({error})") from error
    if into is None or into.shape != pixels.shape:
        return pixels
    into[:] = pixels
    return into


@functools.lru_cache(maxsize=64)
def _parser(columns: tuple[Column, ...]) -> Any:
    from tensorflow_datasets.core.example_parser import ExampleParserNp
    from tensorflow_datasets.core.features import TensorInfo

    def info(column: Column) -> TensorInfo:
        if column.kind == "text" or column.encoding != "none":
            return TensorInfo(shape=(None,), dtype=np.object_)
        return TensorInfo(shape=(None, *column.shape), dtype=np.dtype(column.dtype))

    return ExampleParserNp({column.stored: info(column) for column in columns})


def _unpacked(values: Any, column: Column) -> np.ndarray:
    if column.kind == "text" or column.encoding == "none":
        return values
    size = column.numbers * np.dtype(column.dtype).itemsize
    rows = np.empty((len(values), *(dim or 0 for dim in column.shape)), column.dtype)
    for number, content in enumerate(values):
        if column.encoding == "zlib":
            content = zlib.decompressobj().decompress(content, size + 1)  # no more than a row, whatever it claims to be
        if len(content) != size:
            raise Damaged(f"row {number} of {column.stored!r} is not of {size} bytes")
        rows[number] = np.frombuffer(content, column.dtype).reshape(rows.shape[1:])
    return rows
