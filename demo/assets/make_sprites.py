#!/usr/bin/env python3
"""Make sprites.tar: 320 small emoji pictures with alpha, one WebP each, named by their Unicode short name.

Usage: make_sprites.py INPUT_FOLDER OUTPUT_TAR
The input folder holds what `npm pack` writes for these packages:
  @lobehub/fluent-emoji-3d@1.1.0   the pictures (256x256 WebP, MIT); it carries no LICENSE file of its own
  @lobehub/fluent-emoji@4.1.1      its sister package out of the same repository: LobeHub's LICENSE text
  fluentui-emoji-js@1.2.1          carries Microsoft's LICENSE text, whose drawings (Fluent Emoji) these are
  unicode-emoji-json@0.9.0         code point -> Unicode short name (MIT; only the names are used)
Needs: Pillow, numpy.  Also writes names.txt (one name a line) beside OUTPUT_TAR.
The output is deterministic for one version of Pillow and of its libwebp.
"""
import io
import json
import os
import sys
import tarfile

import numpy as np
from PIL import Image

SIZE, MARGIN, QUALITY, ALPHA_QUALITY = 96, 0.02, 75, 80

PACKAGES = ("lobehub-fluent-emoji-3d-1.1.0", "lobehub-fluent-emoji-4.1.1", "fluentui-emoji-js-1.2.1",
            "unicode-emoji-json-0.9.0")

NAMES = """
grinning face; face with tears of joy; smiling face with heart-eyes; smiling face with sunglasses; thinking face
sleeping face; loudly crying face; enraged face; cold face; nauseated face; exploding head; cowboy hat face
partying face; nerd face; smiling face with halo
skull; clown face; ogre; ghost; alien; robot; red heart; brain; tooth; bone
monkey face; orangutan; dog face; wolf; fox; raccoon; cat face; black cat; lion; tiger face; leopard; horse face
unicorn; zebra; deer; bison; cow face; pig face; ram; camel; llama; giraffe; elephant; mammoth; hippopotamus
mouse face; rabbit face; chipmunk; hedgehog; bat; bear; koala; panda; sloth; otter; kangaroo; rooster
hatching chick; penguin; dove; eagle; duck; swan; owl; flamingo; peacock; parrot; frog; crocodile; turtle; lizard
snake; dragon; sauropod; T-Rex; spouting whale; dolphin; seal; tropical fish; blowfish; shark; octopus; spiral shell
jellyfish; crab; lobster; snail; butterfly; honeybee; lady beetle; spider; scorpion
bouquet; cherry blossom; rose; hibiscus; sunflower; tulip; hyacinth; lotus; seedling; potted plant; evergreen tree
deciduous tree; palm tree; cactus; four leaf clover; maple leaf; mushroom; coral
grapes; watermelon; tangerine; lemon; banana; pineapple; mango; red apple; green apple; pear; peach; cherries
strawberry; blueberries; kiwi fruit; tomato; coconut; avocado; eggplant; potato; carrot; ear of corn; hot pepper
bell pepper; cucumber; broccoli; garlic; onion; pea pod; bread; croissant; pretzel; pancakes; cheese wedge
poultry leg; bacon; hamburger; french fries; pizza; hot dog; sandwich; taco; popcorn; spaghetti; sushi
soft ice cream; doughnut; cookie; birthday cake; shortcake; cupcake; chocolate bar; candy; lollipop; honey pot
hot beverage; teapot; wine glass; cocktail glass; beer mug; bubble tea; ice
compass; volcano; brick; house; castle; Statue of Liberty; church; tent; carousel horse; ferris wheel; circus tent
locomotive; bus; ambulance; fire engine; police car; taxi; automobile; pickup truck; delivery truck; tractor
racing car; motorcycle; motor scooter; auto rickshaw; bicycle; skateboard; roller skate; fuel pump; wheel
vertical traffic light; anchor; ring buoy; sailboat; canoe; passenger ship; airplane; parachute; helicopter; rocket
flying saucer; luggage; watch; alarm clock; ringed planet; crescent moon; sun with face; star; cloud with rain
rainbow; umbrella; snowflake; snowman; fire; droplet; water wave
jack-o-lantern; Christmas tree; balloon; party popper; ribbon; wrapped gift; trophy; soccer ball; baseball
basketball; volleyball; american football; tennis; bowling; boxing glove; ice skate; bullseye; yo-yo; kite
pool 8 ball; crystal ball; video game; game die; puzzle piece; teddy bear; artist palette; yarn
glasses; t-shirt; jeans; gloves; dress; backpack; running shoe; high-heeled shoe; crown; top hat; graduation cap
lipstick; gem stone; megaphone; bell; headphone; radio; saxophone; trumpet; accordion; guitar; violin; drum; maracas
telephone; battery; laptop; floppy disk; abacus; clapper board; television; camera; candle; light bulb
red paper lantern; books; scroll; coin; money bag; package; pencil; crayon; pushpin; scissors; key; hammer; axe
bomb; shield; wrench; gear; toolbox; magnet; ladder; test tube; microscope; telescope; chair; bucket
fire extinguisher
"""


def wanted_names():
    return [n.strip() for line in NAMES.strip().splitlines() for n in line.split(";")]


def read_tgz(path):
    with tarfile.open(path) as tar:
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in tar if m.isfile()}


def code_points(text):
    """'1f3d4-fe0f' and the emoji itself come to one key: code points in hex without the variation selector."""
    parts = text.split("-") if text.isascii() else ["%x" % ord(c) for c in text]
    return "-".join(p for p in parts if p != "fe0f")


def sprite(data):
    """Trim to the alpha bounding box, centre in a square, scale by Lanczos on premultiplied alpha, encode."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), dtype=np.float32) / 255
    ys, xs = np.nonzero(image[..., 3] > 8 / 255)
    image = image[ys.min():ys.max() + 1, xs.min():xs.max() + 1]
    height, width = image.shape[:2]
    side = round(max(height, width) / (1 - 2 * MARGIN))
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top:top + height, left:left + width] = image
    square[..., :3] *= square[..., 3:]
    planes = [Image.fromarray(square[..., c]).resize((SIZE, SIZE), Image.LANCZOS) for c in range(4)]
    small = np.clip(np.stack([np.asarray(p) for p in planes], -1), 0, 1)
    small[..., :3] = np.where(small[..., 3:] > 0, small[..., :3] / np.maximum(small[..., 3:], 1e-4), 0)
    out = io.BytesIO()
    Image.fromarray((np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)).save(
        out, "WEBP", quality=QUALITY, alpha_quality=ALPHA_QUALITY, method=6)
    return out.getvalue()


def write_tar(path, entries):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uid, info.gid = len(data), 0o644, 0, 0, 0
            tar.addfile(info, io.BytesIO(data))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, output = sys.argv[1:]
    tgz = [os.path.join(folder, p + ".tgz") for p in PACKAGES]
    fluent, lobehub, microsoft, names_package = map(read_tgz, tgz)
    pictures = {code_points(os.path.basename(f)[:-5]): d for f, d in fluent.items() if f.endswith(".webp")}
    emoji = {v["name"]: code_points(e) for e, v in json.loads(names_package["data-by-emoji.json"]).items()}

    sprites = {n.lower(): sprite(pictures[emoji[n]]) for n in wanted_names()}
    assert len(sprites) == len(wanted_names()) == 320, (len(sprites), len(wanted_names()))
    assert all(n.isascii() for n in sprites)
    source = (
        f"Pictures: npm @lobehub/fluent-emoji-3d 1.1.0 (MIT; Microsoft's Fluent Emoji, 3D style), 320 of them, trimmed,"
        f" scaled to {SIZE}x{SIZE} and encoded anew as WebP by make_sprites.py.\n"
        f"Names: Unicode short names out of npm unicode-emoji-json 0.9.0 (MIT), lower case, a space written as '-'.\n")
    licence = (b"The packaging (@lobehub/fluent-emoji-3d):\n\n" + lobehub["LICENSE"].strip(b"\n")
               + b"\n\n----\n\nThe drawings (Fluent Emoji):\n\n" + microsoft["LICENSE"].strip(b"\n") + b"\n")
    files = sorted((n.replace(" ", "-"), n, d) for n, d in sprites.items())
    write_tar(output, [("LICENSE", licence), ("SOURCE", source.encode())]
              + [(f + ".webp", d) for f, _, d in files])
    with open(os.path.join(os.path.dirname(output) or ".", "names.txt"), "w") as out:
        out.writelines(n + "\n" for _, n, _ in files)
    print(f"{len(files)} sprites, {os.path.getsize(output)} bytes")


if __name__ == "__main__":
    main()
