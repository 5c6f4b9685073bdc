"""What files say beside their pixels: EXIF, XMP, colour profiles and spaces, through the command line."""

import numpy as np
import pytest

from tests.pictures import load, oiio, photograph, save  # isort: skip -- it skips where packages are missing

from bilagrid import images
from bilagrid.__main__ import main
from tests.commands import CommandLine

pil = pytest.importorskip("PIL.Image")
tiff = pytest.importorskip("PIL.TiffImagePlugin")
png = pytest.importorskip("PIL.PngImagePlugin")

run = CommandLine(main)

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" {}>{}</rdf:Description>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def with_xmp(path, packet, **attributes):
    """A picture with EXIF, in TIFF without, and XMP, as photo editors write them."""
    if path.suffix == ".tif":
        tags = tiff.ImageFileDirectory_v2()
        tags[700], tags.tagtype[700] = packet.encode(), 1
        pil.fromarray(photograph()).save(path, tiffinfo=tags)
        return path
    save(path, photograph(), **attributes)
    if path.suffix == ".jpg":
        segment = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()
        data = path.read_bytes()
        tables = data.index(b"\xff\xdb")
        path.write_bytes(data[:tables] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[tables:])
        return path
    with pil.open(path) as picture:
        texts = png.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", packet)
        picture.save(path, pnginfo=texts, exif=picture.getexif())
    return path


def chunks(path):
    """The names of a PNG's chunks, and the keys of its texts."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode()
        found.append(data[at + 8 : at + 8 + size].split(b"\0")[0].decode() if name == "tEXt" else name)
        at += size + 12
    return found


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_fractions_and_times_in_xmp_do_not_spoil_exif(tmp_path, suffix):
    packet = XMP.format(
        'exif:FocalLength="320/10" exif:ExposureBiasValue="-5/3" exif:DateTimeOriginal="2009-08-17T05:14:20.13-04:00"',
        "<exif:ApertureValue>633985/100000</exif:ApertureValue><exif:SubjectDistance>7/1</exif:SubjectDistance>",
    )
    exif = {"Exif:FocalLength": 32.0, "Exif:ExposureBiasValue": -5 / 3, "Exif:ApertureValue": 6.33985}
    source = with_xmp(tmp_path / f"in.{suffix}", packet, **exif)
    for target in ("out.jpg", "out.png", "out.tif"):
        assert run("filter", source, tmp_path / target, "--overwrite") == 0
        _, spec = load(tmp_path / target)
        for name, value in (exif | {"Exif:SubjectDistance": 7.0}).items():
            assert spec.get_float_attribute(name) == pytest.approx(value, rel=1e-4), (target, name)
        assert spec.get_string_attribute("Exif:DateTimeOriginal") == "2009:08:17 05:14:20"


def test_exposures_in_xmp(tmp_path, capsys):
    for name, number in (("lit", "28/10"), ("dark", "8/1")):
        with_xmp(tmp_path / f"{name}.jpg", XMP.format(f'exif:FNumber="{number}"', ""), ExposureTime=0.01)
    assert run("flash", tmp_path / "lit.jpg", tmp_path / "dark.jpg", tmp_path / "out.jpg") == 0
    assert f"exposure {(8 / 2.8) ** 2:.3g}, from EXIF" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_picture_of_another_space_is_not_said_to_be_srgb(tmp_path, suffix):
    """A camera writes Adobe RGB without a profile, and EXIF says by 65535 that it is not sRGB."""
    space = {"oiio:ColorSpace": "unknown", "Exif:ColorSpace": 65535}
    source = save(tmp_path / "in.jpg", photograph(), **space)
    assert load(source)[1].get_int_attribute("Exif:ColorSpace") == 65535
    assert run("filter", source, tmp_path / f"out.{suffix}") == 0
    assert load(tmp_path / f"out.{suffix}")[1].get_int_attribute("Exif:ColorSpace") == 65535
    if suffix == "png":
        assert not {"sRGB", "gAMA", "cHRM"} & set(chunks(tmp_path / "out.png"))


def test_a_profile_says_alone_what_colours_are(tmp_path):
    cms = pytest.importorskip("PIL.ImageCms")
    profile = cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()
    pil.fromarray(photograph()).save(tmp_path / "in.jpg", icc_profile=profile)
    for suffix in ("png", "jpg"):
        assert run("filter", tmp_path / "in.jpg", tmp_path / f"out.{suffix}") == 0
        with pil.open(tmp_path / f"out.{suffix}") as result:
            assert result.info["icc_profile"] == profile
    assert not load(tmp_path / "out.jpg")[1].get_int_attribute("Exif:ColorSpace")
    found = chunks(tmp_path / "out.png")
    assert "iCCP" in found
    assert not [name for name in found if name in ("sRGB", "gAMA", "cHRM") or name.startswith("ICCProfile")]


def test_radiance_made_of_photographs_is_not_said_to_be_srgb(tmp_path):
    like = images.read(save(tmp_path / "in.jpg", photograph(), **{"Exif:ColorSpace": 1}))
    assert like.spec.get_int_attribute("Exif:ColorSpace") == 1
    radiance = images.merged(np.ones((60, 80, 3), np.float32), like)
    images.write(tmp_path / "out.tif", radiance.values, radiance)
    _, spec = load(tmp_path / "out.tif")
    assert spec.get_int_attribute("Exif:ColorSpace") == 65535
    assert "srgb" not in spec.get_string_attribute("oiio:ColorSpace")
    path = tmp_path / "shown.jpg"
    shown = images.developed(radiance.values, radiance, path)
    images.write(path, shown.values, shown)
    assert load(path)[1].get_int_attribute("Exif:ColorSpace") != 65535


@pytest.mark.parametrize("kind", ["uint16", "float"])
@pytest.mark.parametrize("command", ["filter", "equalize"])
def test_colours_multiplied_by_alpha(tmp_path, command, kind):
    """A TIFF whose alpha is associated gives what the same picture gives with colours as they are."""
    values = photograph(channels=4, kind="float")
    values[..., 3] = values[..., 3] * 0.75 + 0.25
    plain = save(tmp_path / "plain.tif", values if kind == "float" else np.rint(values * 65535).astype(np.uint16))
    spec = oiio.ImageSpec(80, 60, 4, kind)
    spec.alpha_channel = 3
    file = oiio.ImageOutput.create("tiff")
    assert file.open(str(tmp_path / "multiplied.tif"), spec)
    assert file.write_image(np.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], 2))
    assert file.close()
    assert not load(tmp_path / "multiplied.tif")[1].get_int_attribute("oiio:UnassociatedAlpha")
    results = []
    for source in (plain, tmp_path / "multiplied.tif"):
        assert run(command, source, tmp_path / f"out_{source.name}") == 0
        result, spec = load(tmp_path / f"out_{source.name}")
        assert spec.get_int_attribute("oiio:UnassociatedAlpha") == 1
        results.append(result / (1 if kind == "float" else 65535))
    np.testing.assert_allclose(results[1], results[0], atol=3e-3)
