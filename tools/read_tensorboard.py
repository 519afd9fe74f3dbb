#!/usr/bin/env python3
"""Reads a run's event files as TensorBoard and its users do, and prints what they show as JSON, for tests/tensorboard.rs.

usage: PYTHON read_tensorboard.py FOLDER

{reader: {kind: {tag: [[step, value], …]}}}, where a number is a string that parses back to the same one. The readers:

accumulator  the class that scripts use
reload       what `tensorboard --load_fast=false` shows, read by Python
server       what plain `tensorboard` shows, read by its data server
"""

import hashlib
import json
import subprocess
import sys
import threading

from tensorboard.backend.event_processing import data_provider, event_accumulator, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util, tensor_util

ALL = 1_000_000
PLUGINS = ["scalars", "histograms", "images", "text"]


def number(value):
    return repr(float(value))


def value_of(plugin, array):
    """A tensor's value, by the plugin that it is for."""
    if plugin == "scalars":
        return number(array)
    if plugin == "histograms":
        return [[number(value) for value in row] for row in array]
    if plugin == "images":
        width, height, picture = array.tolist()
        return image(width, height, picture)
    return array.item().decode()


def image(width, height, picture):
    return [int(width), int(height), len(picture), hashlib.sha256(picture).hexdigest()]


def accumulator(folder):
    events = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    shown = {plugin: {} for plugin in PLUGINS}
    for tag in tags["scalars"]:
        shown["scalars"][tag] = [[event.step, number(event.value)] for event in events.Scalars(tag)]
    for tag in tags["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        points = ((event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag))
        shown[plugin][tag] = [[step, value_of(plugin, array)] for step, array in points]
    return shown


def provided(provider):
    context = RequestContext()
    asked = {"ctx": context, "experiment_id": "", "downsample": ALL}
    shown = {}
    for plugin in PLUGINS:
        if plugin == "scalars":
            series = provider.read_scalars(**asked, plugin_name=plugin)
            read = lambda point: number(point.value)
        elif plugin == "images":
            series = provider.read_blob_sequences(**asked, plugin_name=plugin)
            read = lambda point: image(
                *(provider.read_blob(context, blob_key=blob.blob_key) for blob in point.values)
            )
        else:
            series = provider.read_tensors(**asked, plugin_name=plugin)
            read = lambda point: value_of(plugin, point.numpy)
        runs = list(series.values())
        assert len(runs) <= 1, f"{len(runs)} runs in one folder"
        shown[plugin] = {
            tag: [[point.step, read(point)] for point in points] for run in runs for tag, points in run.items()
        }
    return shown


def reload(folder):
    # Without sampling, as `--samples_per_plugin` with 0 asks for it.
    every = {plugin: 0 for plugin in PLUGINS}
    events = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance=every)
    events.AddRunsFromDirectory(folder)
    events.Reload()
    return provided(data_provider.MultiplexerDataProvider(events, folder))


def server(folder):
    # Started here rather than by its ingester, which does not wait until the files are read.
    binary = server_ingester.get_server_binary().path
    flags = ["--reload=once", "--checksum", "--verbose", "--die-after-stdin"]
    flags.append("--samples-per-plugin=" + ",".join(f"{plugin}=all" for plugin in PLUGINS))
    piped = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([binary, f"--logdir={folder}", "--port=0", *flags], **piped) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "Finished load cycle" in line:
                break
        else:
            raise RuntimeError("the data server ended: " + "".join(said))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        address = next(line for line in said if line.startswith("listening on")).split()[-1]
        existing = server_ingester.ExistingServerDataIngester(
            address, channel_creds_type=grpc_util.ChannelCredsType.LOCAL
        )
        shown = provided(existing.data_provider)
        process.stdin.close()
    return shown


folder = sys.argv[1]
print(json.dumps({reader.__name__: reader(folder) for reader in [accumulator, reload, server]}))
