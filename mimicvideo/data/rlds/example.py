"""Finds the features of a serialised tf.train.Example without reading the others, so that pictures stay where they are.

The messages (tensorflow/core/example/{example,feature}.proto) are, by field number:
Example {1: Features}; Features {1: map of string to Feature}; a map's entry {1: key, 2: value};
Feature {1: BytesList, 2: FloatList, 3: Int64List}; each list {1: values}.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Read = Callable[[int, int], bytes]  # position and count to bytes; fewer at the end
BLOCK = 4096  # what is read at least to find the next tag: as cheap as a few bytes, and small features come along
FIELD_1, FIELD_2 = 0x0A, 0x12  # tags of length-delimited fields


@dataclass(frozen=True)
class Span:
    """Where an entry of the map of features lies, and its value, a Feature, within the record. Bytes."""

    start: int
    end: int
    value_start: int


class Damaged(ValueError):
    """Bytes that are not the message they should be."""


class _Bytes:
    """Reads numbers here and there of a message, block by block."""

    def __init__(self, read: Read) -> None:
        self._read, self._block, self._start = read, b"", 0

    def at(self, position: int, count: int) -> bytes:
        offset = position - self._start
        if offset < 0 or offset + count > len(self._block):
            self._block, self._start, offset = self._read(position, max(count, BLOCK)), position, 0
        return self._block[offset : offset + count]

    def field(self, position: int, end: int) -> tuple[int, int, int]:
        """Tag of a length-delimited field, where its content starts, and where it ends."""
        head = self.at(position, min(11, end - position))
        if not head:
            raise Damaged(f"it ends at byte {position}")
        length, start = 0, position + 1
        for byte in head[1:]:
            length |= (byte & 0x7F) << 7 * (start - position - 1)
            start += 1
            if byte < 0x80:
                break
        else:
            raise Damaged(f"no length at byte {position}")
        if start + length > end:
            raise Damaged(f"the field at byte {position} leaves what it is part of")
        return head[0], start, start + length


def find_features(read: Read, size: int) -> dict[str, Span]:
    """Where the features of an Example lie, by name.

    Args:
        read: Reads bytes of the record.
        size: The record's length.

    Raises:
        Damaged: If it is no Example.
    """
    there, spans, position = _Bytes(read), {}, 0
    while position < size:
        tag, entry, end = there.field(position, size)
        if tag != FIELD_1:
            raise Damaged(f"unknown tag {tag} at byte {position}")
        while entry < end:
            tag, key, after = there.field(entry, end)
            key_tag, name, value = there.field(key, after)
            if tag != FIELD_1 or key_tag != FIELD_1:
                raise Damaged(f"unknown tag at byte {entry}")
            try:
                text = there.at(name, value - name).decode()
            except UnicodeDecodeError as error:
                raise Damaged(f"a feature's name at byte {name} is no text") from error
            if value < after:
                tag, start, value_end = there.field(value, after)
                if tag != FIELD_2 or value_end != after:
                    raise Damaged(f"feature {text!r} is no pair of name and value")
            else:
                start = after
            spans[text] = Span(entry, after, start)
            entry = after
        position = end
    return spans


def pick(read: Read, spans: Sequence[Span]) -> bytes:
    """A serialised Example of these features alone.

    Raises:
        Damaged: If the record is shorter than it should be.
    """
    entries = b"".join(_exactly(read, span.start, span.end) for span in spans)
    return bytes([FIELD_1]) + _varint(len(entries)) + entries


def byte_strings(read: Read, span: Span) -> Iterator[tuple[int, int]]:
    """Where each string of a feature that holds bytes starts and ends, one after another; only lengths are read.

    Raises:
        Damaged: If the feature holds no bytes.
    """
    there, position, after = _Bytes(read), span.value_start, span.end
    while position < after:
        tag, start, end = there.field(position, after)
        if tag != FIELD_1:
            raise Damaged("the feature holds numbers, not bytes")
        while start < end:
            tag, first, last = there.field(start, end)
            if tag != FIELD_1:
                raise Damaged(f"unknown tag {tag} at byte {start}")
            yield first, last
            start = last
        position = end


def _exactly(read: Read, start: int, end: int) -> bytes:
    content = read(start, end - start)
    if len(content) != end - start:
        raise Damaged(f"it ends at byte {start + len(content)}")
    return content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
