"""Image files: every kind to the RGB that a viewer shows; what is dangerous or damaged is refused, and cheaply."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from rows import picture, png

from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import DECODED, FORMATS, ImageLimits, decode, image_size, read_image

LIMITS = ImageLimits()


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, pixels: bytes, kind: int = 2, depth: int = 8) -> bytes:
    """A PNG file whose header says `width` x `height`, whatever the compressed pixels hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def array(data: bytes) -> np.ndarray:
    image = decode(data, LIMITS)
    assert image.mode == "RGB" and image.size == image_size(data, LIMITS)
    return np.asarray(image)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(format):
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(array(saved(picture(), format, **options)), np.asarray(picture()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = np.asarray(Image.open(io.BytesIO(saved(picture(), format))).convert("RGB"))
    turned = {  # by the value, what a viewer does
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown, -1),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown),
    }
    np.testing.assert_array_equal(array(saved(picture(), format, exif=exif)), turned[orientation])


def test_an_orientation_that_is_none_is_none():
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(array(saved(picture(), "PNG", exif=exif)), np.asarray(picture()))


def test_grey_palette_and_one_bit():
    grey = picture().convert("L")
    np.testing.assert_array_equal(array(saved(grey, "PNG")), np.repeat(np.asarray(grey)[..., None], 3, -1))
    palette = picture().quantize(16)
    np.testing.assert_array_equal(array(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = grey.convert("1")
    np.testing.assert_array_equal(array(saved(bits, "PNG")), np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_has_the_colours_of_its_inks(format):
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow are red
    red, green, blue = array(saved(flat, format)).reshape(-1, 3).mean(0)
    assert red > 240 and green < 15 and blue < 15


def test_alpha_lies_on_white():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    for format in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        np.testing.assert_array_equal(array(saved(clear, format, **options)), [[[255, 255, 255], [10, 20, 30]]])
    half = array(saved(Image.new("LA", (1, 1), (0, 128)), "PNG"))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    data = saved(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(array(data), [[[255, 255, 255], [50, 60, 70]]])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(array(data), np.asarray(frames[0]))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_8(format):
    values = np.array([[0, 257, 128 * 257], [65535, 300, 32767]], np.uint16)
    data = saved(Image.fromarray(values), format)
    wanted = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(array(data)[..., 0], wanted)
    np.testing.assert_array_equal(array(data)[..., 2], wanted)


def test_16_bit_colour():
    row = struct.pack(">B6H", 0, 65535, 0, 32768, 0, 65535, 255)
    np.testing.assert_array_equal(array(png_of(2, 1, row, depth=16)), [[[255, 0, 128], [0, 255, 0]]])


@pytest.mark.parametrize("values", [np.array([[1.5, 2.0]], np.float32), np.array([[70000, -5]], np.int32)])
def test_pixels_without_a_plain_meaning_are_refused(values):
    with pytest.raises(ImageError, match="32 bits"):
        decode(saved(Image.fromarray(values), "TIFF"), LIMITS)


def test_bombs_are_refused_by_their_header_alone():
    bombs = [
        png_of(20_000, 20_000, bytes(20_000 * 60_001)[: 1 << 24]),
        png_of(2**31 - 1, 2**31 - 1, b""),
        saved(Image.new("L", (8000, 7000)), "WEBP", lossless=True),
        saved(Image.new("L", (8000, 7000)), "GIF"),
    ]
    tracemalloc.start()
    begin = time.perf_counter()
    for bomb in bombs:
        for look in (decode, image_size):
            with pytest.raises(ImageError, match=r"pixels|header") as refused:
                look(bomb, LIMITS)
            assert refused.value.oversized or "header" in str(refused.value)
    assert time.perf_counter() - begin < 10 and tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_100_megapixel_png_is_refused_in_words(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(10_000, 10_000, b""))
    with pytest.raises(ImageError, match="10000 x 10000 = 100,000,000 pixels; allowed: at most 50,000,000"):
        read_image(tmp_path / "a.png")
    assert decode(png(), ImageLimits(pixels=96)).size == (12, 8)
    with pytest.raises(ImageError, match="allowed: at most 95"):
        decode(png(), ImageLimits(pixels=95))


def test_files_over_the_byte_limit_are_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ImageError, match=r"1,099,511,627,776 bytes; allowed: at most 67,108,864"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["missing.png", ".", "/dev/zero"])
def test_what_is_no_file_is_not_read(tmp_path, name):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / name)


def test_lying_headers():
    """More pixels promised than there are, or fewer: a checksum, a length or the decoder says so."""
    with pytest.raises(ImageError, match="damaged"):
        decode(png_of(100, 100, bytes(50 * 301)), LIMITS)
    data = bytearray(png())
    struct.pack_into(">I", data, 16, 24)  # the width, its checksum left as it was
    with pytest.raises(ImageError, match=r"damaged|known format"):
        decode(bytes(data), LIMITS)
    with pytest.raises(ImageError, match="known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", LIMITS)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("margin", [False, True])
def test_a_jpeg_without_its_last_rows_is_refused(progressive, restarts, mode, margin):
    image = picture(1, (70, 50)).convert(mode)
    if margin:  # plain to its last row, as a decoder would make it up
        image.paste(Image.new("RGB", (70, 30), (128, 128, 128)).convert(mode), (0, 20))
    data = bytearray(saved(image, "JPEG", progressive=progressive, restart_marker_blocks=restarts))
    assert decode(bytes(data), LIMITS).size == (70, 50)
    struct.pack_into(">H", data, data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5, 90)
    with pytest.raises(ImageError, match="fewer pixels"):
        decode(bytes(data), LIMITS)


@pytest.mark.parametrize("size", [(64, 48), (300, 200), (1, 1)])
@pytest.mark.parametrize("colours", [2, 16, 256])
def test_a_gif_without_its_last_rows_is_refused(size, colours):
    data = bytearray(saved(picture(1, size).quantize(colours), "GIF"))
    assert decode(bytes(data), LIMITS).size == size
    struct.pack_into("<H", data, data.index(b"\x2c\0\0\0\0") + 7, size[1] + 1)
    with pytest.raises(ImageError, match="header promises"):
        decode(bytes(data), LIMITS)


def test_interlaced_pixels_are_counted():
    for size in ((1, 1), (3, 2), (9, 17)):
        image = picture(2, size)
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        pixels, seen = np.asarray(image), b""
        for left, top, across, down in passes:
            part = pixels[top::down, left::across]
            seen += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 1)
        for content, good in ((seen, True), (seen[:-1], False)):
            body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
            if good:
                np.testing.assert_array_equal(array(b"\x89PNG\r\n\x1a\n" + body), pixels)
            else:
                with pytest.raises(ImageError, match="damaged"):
                    decode(b"\x89PNG\r\n\x1a\n" + body, LIMITS)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_file_that_ends_early_is_refused(format):
    data = saved(picture(1, (40, 30)), format)
    for share in (0, 0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(share * len(data))], LIMITS)


def test_every_flipped_bit_of_a_png_is_seen():
    data = png()
    wanted = np.asarray(picture())
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        try:
            shown = np.asarray(decode(bytes(flipped), LIMITS))
        except ImageError:
            continue
        np.testing.assert_array_equal(shown, wanted)


def test_decoded_files_are_counted(tmp_path):
    before = DECODED.images
    decode(png(), LIMITS)
    image_size(png(), LIMITS)
    assert DECODED.images == before + 1


def test_endless_metadata_does_not_hang():
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[256] = 4
    data = bytearray(saved(picture(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)  # the next directory is this one
    assert decode(bytes(data), LIMITS).size == (12, 8)
    assert set(FORMATS) >= {"PNG", "JPEG", "TIFF"} and "EPS" not in FORMATS
