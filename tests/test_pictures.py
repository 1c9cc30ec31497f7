"""Pictures as people have them: read alike everywhere, sizes as shown, broken ones found at import."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from importing import run

from xmodal_jax.data.pictures import LARGE, TURNS, examine, read_picture
from xmodal_jax.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="pillow (extra image) is not installed")


def scene(height=24, width=40):
    """RGB with a red corner upper left and green beside it, so that all eight turns differ."""
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[: height // 3, : width // 4] = (230, 20, 20)
    pixels[: height // 3, width // 2 :] = (20, 180, 40)
    return pixels


def stored(pixels, orientation):
    """The pixels as a camera stores them under an orientation: the way there is the other turn of the way back."""
    ways = {6: "ROTATE_90", 8: "ROTATE_270"}
    way = ways.get(orientation, TURNS.get(orientation))
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return (picture if way is None else picture.transpose(Image.Transpose[way])), exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_every_orientation_is_read_upright(tmp_path, orientation, kind):
    picture, exif = stored(scene(), orientation)
    path = tmp_path / "p"
    picture.save(path, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 97}))
    read = read_picture(path)
    assert read.shape == (24, 40, 3)
    assert np.abs(read.astype(int) - scene()).mean() < (4 if kind == "JPEG" else 1e-9)
    assert examine(path).size == (24, 40)
    assert read_picture(path, side=20).shape == (12, 20, 3)
    with Image.open(path) as opened:  # a picture in memory, too
        np.testing.assert_array_equal(read_picture(opened), read)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense" * 9])
def test_a_broken_note_of_the_camera_does_not_hide_the_pixels(exif):
    body = io.BytesIO()
    Image.fromarray(scene()).save(body, "JPEG", exif=exif)
    assert read_picture(body.getvalue()).shape == (24, 40, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    picture, exif = stored(scene(), value)
    body = io.BytesIO()
    picture.save(body, "PNG", exif=exif)
    np.testing.assert_array_equal(read_picture(body.getvalue()), scene())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    body = io.BytesIO()
    Image.fromarray(grey * 257).save(body, kind)
    np.testing.assert_array_equal(read_picture(body.getvalue()), np.repeat(grey[..., None], 3, axis=2))
    assert read_picture(body.getvalue(), side=8).shape == (8, 8, 3)


def png16(levels, kind, *chunks):
    """A PNG of 16 bits a channel, which PIL does not write: levels [H, W, channels]."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = levels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_sixteen_bits_with_colours_and_transparency():
    deep = scene().astype(np.uint16) * 257
    np.testing.assert_array_equal(read_picture(png16(deep, 2)), scene())
    opaque = np.full((24, 40, 1), 65535, np.uint16)
    opaque[12:] = 0
    on_white = np.where(opaque > 0, scene(), 255)
    np.testing.assert_array_equal(read_picture(png16(np.concatenate([deep, opaque], 2), 6)), on_white)
    grey = np.array([[[0], [1000], [65535]]], np.uint16)  # black is declared to be clear
    read = read_picture(png16(grey, 0, (b"tRNS", struct.pack(">H", 0))))
    assert read[0, :, 0].tolist() == [255, 4, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_white(mode):
    colour = scene() if mode in ("RGBA", "P") else np.repeat(scene()[..., :1], 3, axis=2)
    opaque = np.full((24, 40), 255, np.uint8)
    opaque[10:] = 0
    picture = Image.fromarray(np.dstack([np.where(opaque[..., None], colour, 0), opaque]).astype(np.uint8), "RGBA")
    body, wanted = io.BytesIO(), np.where(opaque[..., None], colour, 255)
    options = {}
    if mode == "P":
        picture = picture.convert("RGB").quantize(8)
        options["transparency"] = picture.getpixel((0, 20))
    elif mode == "RGB":  # one colour that stands for nothing
        picture, options["transparency"] = picture.convert("RGB"), (0, 0, 0)
    else:
        picture = picture.convert(mode)
    picture.save(body, "PNG", **options)
    assert np.abs(read_picture(body.getvalue()).astype(int) - wanted).max() <= 8 * (mode == "P")


def test_half_transparent_is_mixed_with_white():
    body = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 200, 128)).save(body, "PNG")
    assert read_picture(body.getvalue())[0, 0].tolist() == [127, 127, 227]


def test_formats_and_modes_are_one_picture(tmp_path):
    picture, far = Image.fromarray(scene()), {}
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=97)
    picture.save(tmp_path / "a.bmp")
    picture.save(tmp_path / "a.tif", compression="tiff_lzw")
    picture.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", picture.size, "blue")])
    picture.save(tmp_path / "png-in-truth.jpg", "PNG")
    picture.save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", picture.size)], lossless=True)
    picture.quantize(16).save(tmp_path / "palette.png")
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    for path in sorted(tmp_path.iterdir()):
        far[path.name] = np.abs(read_picture(path).astype(int) - scene()).mean()
        assert examine(path) == ((24, 40), path.name in ("a.gif", "a.webp")), path
    assert len(far) == 8 and max(far.values()) < 4, far
    body = io.BytesIO()
    picture.convert("1").save(body, "PNG")
    assert set(np.unique(read_picture(body.getvalue()))) == {0, 255}


def test_thirty_two_bits_are_refused():
    body = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(body, "TIFF")
    with pytest.raises(DataError, match="32 bits a channel"):
        read_picture(body.getvalue())


def test_a_huge_picture_is_refused_by_its_header(tmp_path):
    def header(width, height):
        body = png16(np.zeros((1, 1, 1), np.uint16), 0)
        size = b"IHDR" + struct.pack(">II", width, height) + body[24:29]
        return body[:12] + size + struct.pack(">I", zlib.crc32(size)) + body[33:]

    with pytest.raises(DataError, match=r"5,000 x 4,001 pixels; at most 20,000,000"):
        read_picture(header(5000, 4001))
    with pytest.raises(DataError, match=r"10,000,000,000 pixels; at most"):  # where PIL itself draws the line
        read_picture(header(100_000, 100_000))
    (tmp_path / "huge.png").write_bytes(header(12_000, 10_001))
    with pytest.raises(DataError, match=rf"huge.png has 12,000 x 10,001 pixels; at most {LARGE:,}"):
        examine(tmp_path / "huge.png")


def test_import_reads_pictures_to_their_end_and_records_sizes_as_shown(tmp_path, capsys):
    source, folder = tmp_path / "src", tmp_path / "pictures"
    source.mkdir()
    folder.mkdir()
    np.save(source / "train_ims.npy", np.random.default_rng(0).normal(size=(6, 2, 8)).astype(np.float32))
    (source / "train_caps.txt").write_text("a red square\n" * 12)
    (source / "train_ids.txt").write_text("turned\nshort\nmoving\npages\nwrong\ndeep\n")
    picture, exif = stored(scene(), 6)
    picture.save(folder / "turned.jpg", exif=exif)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "short.jpg")
    whole = (folder / "short.jpg").read_bytes()
    (folder / "short.jpg").write_bytes(whole[: len(whole) // 2])  # its header is sound
    Image.fromarray(scene()).save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    Image.fromarray(scene()).save(folder / "pages.tiff")
    Image.fromarray(scene()).save(folder / "wrong.jpg", "BMP")
    Image.fromarray(np.full((24, 40), 40_000, np.uint16)).save(folder / "deep.png")
    split = run("precomp", source, tmp_path, images=str(folder)).split("train")
    assert split.sizes.tolist() == [[24, 40], [0, 0], [24, 40], [24, 40], [24, 40], [24, 40]]
    assert [path and path.name for path in split.pictures][1] is None
    said = capsys.readouterr().out
    assert "1 x picture that cannot be read" in said and "1 x animated picture, of which the first is read" in said
    report = next(split.dataset.directory.glob("*report*")).read_text().splitlines()
    entry = next(entry for entry in map(json.loads, report) if entry["what"] == "picture that cannot be read")
    assert entry["file"] == "short.jpg" and "truncated" in entry["reason"]
