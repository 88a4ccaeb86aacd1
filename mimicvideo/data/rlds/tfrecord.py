"""Where the records of a TFRecord file lie, and whether they are what was written.

A record is a length (8 bytes, little-endian), the masked CRC-32C of those 8 bytes, the content, and its masked CRC-32C; see
tensorflow/core/lib/io/record_writer.h and hash/crc32c.h.
"""

import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Int64

HEADER, FOOTER = 12, 4


def masked_crc32c(content: bytes) -> int:
    """The CRC-32C of some bytes, rotated and shifted as TFRecord stores it."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def find_records(path: Path) -> tuple[Int64[np.ndarray, " records"], Int64[np.ndarray, " records"], str | None]:
    """Where the content of each record starts and how long it is, and why there is no more to be found, if the file does not end there.

    Reads 12 bytes a record; the CRC of every length is checked.

    Raises:
        OSError: If the file cannot be read.
    """
    starts, lengths, problem, position = [], [], None, 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while position < size:
            header = os.pread(file.fileno(), HEADER, position)
            if len(header) < HEADER:
                problem = f"it is truncated: {size - position} bytes follow record {len(starts) - 1}"
                break
            length, crc = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != crc:
                problem = f"it is damaged at byte {position}, where record {len(starts)} should start"
                break
            if position + HEADER + length + FOOTER > size:
                problem = f"it is truncated: record {len(starts)} needs {position + HEADER + length + FOOTER} bytes, there are {size}"
                break
            starts.append(position + HEADER)
            lengths.append(length)
            position += HEADER + length + FOOTER
    return np.array(starts, np.int64), np.array(lengths, np.int64), problem


def is_intact(content_and_crc: bytes) -> bool:
    """Whether a record's content is what was written, told by the CRC that follows it."""
    return masked_crc32c(content_and_crc[:-FOOTER]) == struct.unpack("<I", content_and_crc[-FOOTER:])[0]
