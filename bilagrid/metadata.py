"""Corrects what OpenImageIO reads of the EXIF that photo editors write."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

# A number of EXIF as XMP writes it: a fraction, in an attribute or an element. And a time as XMP writes it.
_FRACTION = re.compile(rb"""\bexif:(\w+)\s*(?:=\s*["']|>)\s*(-?\d{1,15})/(\d{1,15})\s*["'<]""")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d:\d\d:\d\d)")

_TIMES = ("DateTime", "Exif:DateTimeOriginal", "Exif:DateTimeDigitized")


def mend_exif(spec: Any, path: Path) -> None:
    """Corrects the header of a picture with XMP, by which OpenImageIO replaces EXIF: it reads fractions as their numerators, and leaves times in XMP's format."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(b"<rdf:RDF")
        xmp = data[begin : data.find(b"</rdf:RDF>", begin)] if begin >= 0 else b""
    for word, above, below in _FRACTION.findall(xmp):
        name = f"Exif:{word.decode()}"
        if int(below) and spec.get_float_attribute(name, 0.0) == np.float32(above):
            spec.attribute(name, int(above) / int(below))
    for name in _TIMES:
        time = _TIME.match(spec.get_string_attribute(name))
        if time:
            spec.attribute(name, "{}:{}:{} {}".format(*time.groups()))
