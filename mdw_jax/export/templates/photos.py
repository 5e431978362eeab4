"""Photos for train.py, read as mdw-jax reads them: `mdw_jax.data.decoding.decode` gives the same pixels."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from checks import InputError  # beside this file
from PIL import ExifTags, Image

# What is read. Others, such as EPS, would hand what strangers wrote to further programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()))
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # by EXIF orientation


def pixels(path, image):
    """A photo as (H, W, 3) uint8, as the set's own images were read: upright, transparent ones on white."""
    height, width, channels = image["shape"]
    if channels != 3 or height != width:
        raise InputError(f"The students take arrays of shape {image['shape']}, and not photos.")
    with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"it has {file.width} x {file.height} pixels, more than Pillow's MAX_IMAGE_PIXELS")
        file.draft(None, (2 * height, 2 * height))
        photo = colors(file)
        try:
            turn = UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation))
        except Exception:  # EXIF is damaged in a dozen ways; the pixels need not be
            turn = None
    photo = photo if turn is None else photo.transpose(turn)
    if photo.size != (width, height):
        side, box = min(photo.size), None
        if image["fit"] == "crop":  # the central square
            left, top = (photo.width - side) / 2, (photo.height - side) / 2
            box = (left, top, left + side, top + side)
        photo = photo.resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(photo)


def colors(file):
    """The pixels of an open image in RGB; gray of 16 bits becomes gray of 8 bits (65535 is 255)."""
    file.load()  # may change the mode
    clear = file.info.get("transparency")
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers (mode F); convert it to 8 bits a channel")
    if file.mode.startswith("I"):
        values = np.asarray(file)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels go from {values.min()} to {values.max()}; convert it to 8 bits a channel")
        gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(clear, int):
            gray[values == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if file.has_transparency_data:
        if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, where Pillow keeps the upper 8 of the pixels
            file.info["transparency"] = tuple(value >> 8 for value in clear)
        layer = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return file.convert("RGB")


def photos_of(folder, names, image):
    """Photos as one uint8 array (N, H, W, 3). Raises InputError where some cannot be read: counts them, names the first."""
    arrays, broken = [], []
    for name in names:
        try:
            arrays.append(pixels(Path(folder) / name, image))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # damaged files make Pillow raise a dozen kinds
            broken.append(f"{name} ({type(error).__name__})")
    if broken:
        raise InputError(f"{len(broken)} images in '{folder}' cannot be read, the first is {broken[0]}; replace them or "
                         "leave their rows out of the CSV.")
    return np.stack(arrays)
