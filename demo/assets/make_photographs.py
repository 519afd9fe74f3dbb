#!/usr/bin/env python3
"""Make photographs.tar: a dozen public domain and CC0 photographs out of four Debian packages.

Usage: make_photographs.py INPUT_FOLDER OUTPUT_TAR
The input folder is where these packages (Debian 12) were unpacked with `apt-get download P; dpkg -x P.deb FOLDER`:
  python3-skimage 0.19.3-8, gcompris-qt-data 3.1-2, palapeli-data 4:22.12.3-1, lomiri-wallpapers-16.04 20.04.0-2
Needs: Pillow.  The output is deterministic for one version of Pillow and of its libjpeg.

Where each licence is stated (also written to SOURCE):
  skimage    the docstrings in skimage/data/_fetchers.py
  gcompris   the README beside the pictures, inside the .rcc file (Qt resource file)
  palapeli   the .desktop file beside the picture
  lomiri     the package's debian copyright file
"""
import io
import os
import struct
import sys
import tarfile
import zlib

from PIL import Image, ImageCms

SKIMAGE = "usr/lib/python3/dist-packages/skimage/data/"
GCOMPRIS = "usr/share/gcompris-qt/rcc/"
PALAPELI = "usr/share/palapeli/collection/"
LOMIRI = "usr/share/backgrounds/"
COMMONS = "commons.wikimedia.org/wiki/File:"

# entry, where, longest side, options, caption, author, licence, origin
PHOTOGRAPHS = [
    ("astronaut.jpg", SKIMAGE + "astronaut.png", 512, {"subsampling": 0},
     "a photograph of an astronaut in an orange suit in front of a flag and a model of a space shuttle",
     "NASA (portrait of Eileen Collins)", "public domain", "NASA Great Images, flic.kr/p/r9qvLn"),
    ("bridge.jpg", PALAPELI + "cincinnati-bridge.jpg", 1024, {},
     "a photograph of a lit suspension bridge over a river at night",
     "Derek Jensen", "public domain", COMMONS + "Cincinnati-roebling-suspension-bridge.jpg"),
    ("cameraman.jpg", SKIMAGE + "camera.png", 512, {"grey": True},
     "a black and white photograph of a man looking through a camera on a tripod",
     "Lav Varshney", "CC0", "github.com/scikit-image/scikit-image/issues/3927"),
    ("castle.jpg", GCOMPRIS + "explore_monuments.rcc:germany/neuschwansteinCastle.webp", 900, {},
     "a photograph of a white castle with towers above a green forest",
     "cameralends", "CC0", COMMONS + "Neuschwanstein_Castle_(532850).jpg"),
    ("cat.png", SKIMAGE + "chelsea.png", 0, {"copy": True},
     "a close-up photograph of the face of a tabby cat",
     "Stefan van der Walt", "CC0", "the photographer's own, given to scikit-image"),
    ("citrus.jpg", PALAPELI + "citrus-fruits.jpg", 960, {"subsampling": 1},
     "a photograph of slices of oranges, limes and other citrus fruits on a white background",
     "US Department of Agriculture", "public domain", COMMONS + "Citrus_fruits.jpg"),
    ("coffee.jpg", SKIMAGE + "coffee.png", 600, {},
     "a photograph of a cup of espresso with a spoon on a red saucer on a wooden table",
     "Rachel Michetti (courtesy of Pikolo Espresso Bar)", "CC0", "the photographer's own, given to scikit-image"),
    ("dandelions.jpg", LOMIRI + "seeding_by_Clements_Engelhardt.jpg", 1600, {},
     "a photograph of dandelion seed heads in the grass with the low sun behind them",
     "Clemens Engelhardt", "CC0", "gitlab.com/ubports/development/core/lomiri-wallpapers"),
    ("kingfisher.jpg", GCOMPRIS + "erase.rcc:kingfisher.webp", 1600, {},
     "a photograph of a blue and orange kingfisher sitting on a branch",
     "Frank-2.0", "CC0", COMMONS + "Eisvogel_kingfisher.jpg"),
    ("koala.jpg", GCOMPRIS + "explore_world_animals.rcc:animals/koala.webp", 1024, {"orientation": 6, "subsampling": 2},
     "a photograph of a koala sitting in a tree",
     "BurningWell", "public domain", COMMONS + "Koala_Perth_Zoo.jpg"),
    ("red-panda.jpg", GCOMPRIS + "erase.rcc:red_panda.webp", 1280, {},
     "a photograph of a red panda beside a branch",
     "Mathias Appel", "CC0", COMMONS + "Red_Panda_(30324056733).jpg"),
    ("rocket.jpg", SKIMAGE + "rocket.jpg", 640, {},
     "a photograph of a white rocket standing on its launch pad under a dark blue sky",
     "SpaceX", "public domain (CC0)", "flickr.com/photos/spacexphotos/16511594820"),
]


def read_rcc(data):
    """The files of a Qt resource file, by path."""
    version, tree, blobs, names = struct.unpack(">4I", data[4:20])
    node_size = 14 if version < 2 else 22

    def walk(index, path):
        node = tree + index * node_size
        name, flags, a, b = struct.unpack(">IHII", data[node:node + 14])
        if index:
            length, = struct.unpack(">H", data[names + name:names + name + 2])
            start = names + name + 6
            path += "/" + data[start:start + 2 * length].decode("utf-16-be")
        if flags & 2:  # a folder: `a` children from node `b` on
            for child in range(b, b + a):
                yield from walk(child, path)
        else:
            size, = struct.unpack(">I", data[blobs + b:blobs + b + 4])
            content = data[blobs + b + 4:blobs + b + 4 + size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return dict(walk(0, ""))


def load(folder, where):
    path, _, member = where.partition(":")
    with open(os.path.join(folder, path), "rb") as file:
        data = file.read()
    if member:
        [data] = [d for p, d in read_rcc(data).items() if p.endswith("/resource/" + member)]
    return data


def encode(data, longest, options):
    if options.get("copy"):
        return data
    image = Image.open(io.BytesIO(data))
    if "icc_profile" in image.info:  # only the rocket's is another than sRGB (Adobe RGB)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "sRGB" not in ImageCms.getProfileDescription(profile):
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    image = image.convert("L" if options.get("grey") else "RGB")
    image.thumbnail((longest, longest), Image.LANCZOS)
    exif = Image.Exif()
    if options.get("orientation") == 6:  # shown upright after a quarter turn clockwise, so stored a quarter turn back
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    out = io.BytesIO()
    image.info.clear()  # no profile, no comment
    image.save(out, "JPEG", quality=88, optimize=True, subsampling=options.get("subsampling", 2),
               **({"exif": exif} if len(exif) else {}))
    return out.getvalue()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, output = sys.argv[1:]
    captions = "".join(f"{p[0]}\t{p[4]}\n" for p in PHOTOGRAPHS)
    package = {SKIMAGE: "python3-skimage 0.19.3-8", GCOMPRIS: "gcompris-qt-data 3.1-2",
               PALAPELI: "palapeli-data 4:22.12.3-1", LOMIRI: "lomiri-wallpapers-16.04 20.04.0-2"}
    source = "Photographs out of Debian 12 packages; made by make_photographs.py.\n"
    for entry, where, longest, options, _, author, licence, origin in PHOTOGRAPHS:
        [debian] = [p for prefix, p in package.items() if where.startswith(prefix)]
        done = "unchanged" if options.get("copy") else f"longest side at most {longest} px, encoded as JPEG 88"
        source += (f"{entry}: {licence}; by {author}; from {origin}; taken from {debian},"
                   f" {where.rpartition('/')[2] if ':' not in where else where.rpartition('rcc/')[2]}; {done}.\n")
    entries = [("CAPTIONS.tsv", captions.encode()), ("SOURCE", source.encode())]
    entries += sorted((p[0], encode(load(folder, p[1]), p[2], p[3])) for p in PHOTOGRAPHS)
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uid, info.gid = len(data), 0o644, 0, 0, 0
            tar.addfile(info, io.BytesIO(data))
            print(f"{len(data):8} {name}")
    print(f"{os.path.getsize(output):8} in all")


if __name__ == "__main__":
    main()
