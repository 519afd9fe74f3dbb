"""The pictures of tools/bench_peers.py, and the web server that serves them.

The pictures are cut from the demo's photographs once, into the user's cache: crops, flips and scales of them, encoded as the web
does (nearly all JPEG, some PNG and WebP). One seed makes the same pictures with one version of OpenCV.
"""

import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tarfile
import time

import cv2
import numpy

PHOTOGRAPHS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../demo/assets/photographs.tar")
SEED, FILES, CONTENTS = 20, 10_000, 1_000
RECIPE = 1  # of `picture`; a new one makes new pictures
SHAPES = [(4, 3), (4, 3), (4, 3), (3, 2), (3, 2), (1, 1), (1, 1), (16, 9), (3, 4), (2, 3)]


def photographs():
    """The demo's photographs, upright, with their colours; the one in grey last."""
    pictures = []
    with tarfile.open(PHOTOGRAPHS) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.name.endswith((".jpg", ".png")):
                data = numpy.frombuffer(tar.extractfile(member).read(), numpy.uint8)
                pictures.append(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return pictures


def picture(number, sources):
    """The bytes of one content and its ending: a crop of a photograph at a size and in an encoding that the web might have."""
    chance = random.Random(f"{SEED}-{number}")
    kind = chance.choices(["jpg", "png", "webp"], [88, 5, 7])[0]
    # Photographs as PNG are seldom large.
    longest = 600 if kind == "png" else 1600
    longer = min(max(chance.lognormvariate(6.7, 0.38), 400), longest)
    across, down = chance.choice(SHAPES)
    width, height = round(longer * across / max(across, down)), round(longer * down / max(across, down))
    # At most a quarter larger than the photograph has it, since what is blown up compresses too well.
    fitting = [image for image in sources if image.shape[1] * 1.25 >= width and image.shape[0] * 1.25 >= height]
    image = chance.choice(fitting or [max(sources, key=lambda image: image.size)])
    most = min(image.shape[1] / width, image.shape[0] / height)
    zoom = chance.uniform(min(0.8, most), most)
    crop_width, crop_height = int(width * zoom), int(height * zoom)
    x, y = chance.randint(0, image.shape[1] - crop_width), chance.randint(0, image.shape[0] - crop_height)
    image = image[y : y + crop_height, x : x + crop_width]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if zoom > 1 else cv2.INTER_CUBIC)
    if chance.random() < 0.5:
        image = cv2.flip(image, 1)
    image = cv2.convertScaleAbs(image, alpha=chance.uniform(0.85, 1.1), beta=chance.uniform(-10, 10))
    quality = chance.randint(75, 92)
    if kind == "jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(chance.random() < 0.25)]
        options += [cv2.IMWRITE_JPEG_OPTIMIZE, int(chance.random() < 0.5)]
        if chance.random() < 0.15:
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        if chance.random() < 0.02:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif kind == "webp":
        options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    else:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 6]
        if chance.random() < 0.3:
            # A cut-out on nothing: an ellipse with a soft edge.
            alpha = numpy.zeros(image.shape[:2], numpy.uint8)
            cv2.ellipse(alpha, (width // 2, height // 2), (width * 2 // 5, height * 2 // 5), 0, 0, 360, 255, -1, cv2.LINE_AA)
            image = numpy.dstack([image, alpha])
    return cv2.imencode(f".{kind}", image, options)[1].tobytes(), kind


def make_pictures(folder):
    """Makes the pictures unless they are there, and returns their paths below `folder`, in the order of the list of URLs."""
    facts = {"seed": SEED, "files": FILES, "contents": CONTENTS, "recipe": RECIPE, "opencv": cv2.__version__}
    ready = f"{folder}/ready.json"
    if not os.path.exists(ready) or json.load(open(ready, encoding="utf-8"))["facts"] != facts:
        print(f"making {CONTENTS} pictures in {folder} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(f"{folder}/contents")
        sources, contents, paths = photographs(), [], []
        for number in range(CONTENTS):
            data, kind = picture(number, sources)
            contents.append(f"contents/{number:04}.{kind}")
            with open(f"{folder}/{contents[-1]}", "wb") as file:
                file.write(data)
        for first in range(0, FILES, CONTENTS):
            os.makedirs(f"{folder}/{first // CONTENTS:02}")
            # Every thousand of the list has each content once, in an order of its own.
            order = random.Random(f"{SEED}-order-{first}").sample(contents, CONTENTS)
            for number, content in enumerate(order[: FILES - first]):
                paths.append(f"{first // CONTENTS:02}/{number:04}{os.path.splitext(content)[1]}")
                os.link(f"{folder}/{content}", f"{folder}/{paths[-1]}")
        with open(ready, "w", encoding="utf-8") as file:
            json.dump({"facts": facts, "paths": paths}, file)
    return json.load(open(ready, encoding="utf-8"))["paths"]


def describe(folder, paths):
    """One line on what is served."""
    sizes = sorted(os.path.getsize(f"{folder}/{path}") for path in paths)
    endings = [os.path.splitext(path)[1] for path in paths]
    shares = ", ".join(f"{100 * endings.count(ending) / len(endings):.0f} % {ending[1:]}" for ending in (".jpg", ".png", ".webp"))
    tenths = [sizes[len(sizes) * tenth // 10] / 1e3 for tenth in (1, 5, 9)]
    return (
        f"{len(paths):,} pictures, {sum(sizes) / 1e6:,.0f} MB ({min(CONTENTS, len(paths)):,} contents, hard-linked): {shares}; "
        f"bytes: tenth {tenths[0]:.0f} kB, median {tenths[1]:.0f} kB, nine tenths {tenths[2]:.0f} kB"
    )


NGINX = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes {workers};
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; multi_accept on; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 65s;
    keepalive_requests 1000000;
    open_file_cache max=20000 inactive=1h;
    open_file_cache_valid 1h;
    types {{ image/jpeg jpg; image/png png; image/webp webp; }}
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port} backlog=8192; root {pictures}; }}
}}
"""


class Server:
    """nginx with a configuration of its own, on loopback, on a port that was free; ended on leaving the `with`."""

    def __init__(self, folder, pictures, workers=2):
        self.folder, self.pictures, self.workers, self.process = folder, pictures, workers, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        # A root's nginx would read the files as nobody, who has no access to the user's cache.
        user = "user root;" if os.geteuid() == 0 else ""
        with open(f"{self.folder}/nginx.conf", "w", encoding="utf-8") as file:
            file.write(NGINX.format(user=user, folder=self.folder, workers=self.workers, port=self.port, pictures=self.pictures))
        command = [program("nginx"), "-p", self.folder, "-c", f"{self.folder}/nginx.conf", "-e", f"{self.folder}/error.log"]
        self.process = subprocess.Popen(command)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"nginx did not start: {open(f'{self.folder}/error.log', encoding='utf-8').read()}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def seconds(self):
        """CPU seconds of its processes so far."""
        total = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if self.process.pid in (int(entry), int(fields[1])):
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def ceiling(self, paths, seconds, keeps):
        """Answers a second that wrk gets for the same files, over kept connections or over a new one each; every answer is whole."""
        script = io.StringIO()
        script.write("local paths = {" + ",".join(f'"/{path}"' for path in paths) + "}\nlocal at = 0\n")
        header = "" if keeps else 'wrk.headers["Connection"] = "close"\n'
        script.write(header + "request = function()\n  at = at % #paths + 1\n  return wrk.format('GET', paths[at])\nend\n")
        with open(f"{self.folder}/paths.lua", "w", encoding="utf-8") as file:
            file.write(script.getvalue())
        command = [program("wrk"), "-t1", "-c64", f"-d{seconds}s", "-s", f"{self.folder}/paths.lua", self.root]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in said:
            raise SystemExit(f"nginx does not serve the pictures:\n{said}")
        return float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])


def program(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return path or exit(f"{name} is not installed; `make bench-peers` as root installs it from Debian's packages")
