"""The suffix that makes a file loadable by USB Device Firmware Upgrade."""

from __future__ import annotations

import struct
import zlib

VERSION = 0x0100


def with_suffix(image: bytes, *, vendor: int, product: int) -> bytes:
    """An image and its suffix: USB Device Firmware Upgrade Specification 1.1, appendix B.

    Parameters
    ----------
    image : bytes
    vendor, product : int
        USB numbers of the device.

    Returns
    -------
    bytes
        The last four bytes are the CRC-32 (not inverted) of all before them.
    """
    suffix = struct.pack("<HHHH3sB", 0xFFFF, product, vendor, VERSION, b"UFD", 16)
    return image + suffix + struct.pack("<I", zlib.crc32(image + suffix) ^ 0xFFFFFFFF)
