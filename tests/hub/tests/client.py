"""Does to the hub what huggingface_hub and datasets do: `client.py FOLDER`, with HF_ENDPOINT set. See client.rs."""

import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image

folder = Path(sys.argv[1])
mine, other, nobody = HfApi(token="hf_write"), HfApi(token="hf_other"), HfApi(token=False)
data = {"repo_id": "me/data", "repo_type": "dataset"}
noise = numpy.random.default_rng(1).bytes


def raises(kind, call, status=None, but=()):
    """The error that a call ends in."""
    try:
        call()
    except kind as error:
        assert not isinstance(error, but), error
        assert status is None or status == error.response.status_code, error
        return error
    raise AssertionError(f"no {kind.__name__}")


def writing():
    assert mine.whoami()["name"] == "me"
    url = mine.create_repo("me/data", repo_type="dataset")
    assert (url.repo_id, url.repo_type) == ("me/data", "dataset")
    assert mine.create_repo("me/data", repo_type="dataset", exist_ok=True) == url
    raises(HfHubHTTPError, lambda: mine.create_repo("me/data", repo_type="dataset"), 409)
    mine.create_repo("lab/model", private=True)
    assert mine.model_info("lab/model").private

    card = b"---\nlicense: mit\n---\n# Data\n"
    first = mine.upload_file(path_or_fileobj=card, path_in_repo="README.md", **data)
    source = folder / "source"
    (source / "deep").mkdir(parents=True)
    (source / "small.txt").write_text("small")
    (source / "deep" / "large.bin").write_bytes(noise(300_000))
    (source / "deep" / "once.tar").write_bytes(noise(20_000))
    (source / "left.log").write_text("left out")
    (source / ".gitignore").write_text("*.log\n")
    second = mine.upload_folder(folder_path=source, path_in_repo="", **data)
    assert second.oid == mine.dataset_info("me/data").sha != first.oid
    again = mine.upload_folder(folder_path=source, ignore_patterns="*.log", **data)
    assert again.oid == second.oid, "nothing has changed"

    changes = [
        CommitOperationAdd("more.txt", b"more"),
        CommitOperationCopy("deep/large.bin", "deep/copy.bin"),
        CommitOperationDelete("small.txt"),
    ]
    third = mine.create_commit(operations=changes, commit_message="third", parent_commit=second.oid, **data)
    late = [CommitOperationAdd("late.txt", b"late")]
    stale = lambda: mine.create_commit(operations=late, commit_message="late", parent_commit=second.oid, **data)
    raises(HfHubHTTPError, stale, 412)
    proposal = other.create_commit(operations=late, commit_message="a proposal", create_pr=True, **data)
    assert (proposal.pr_revision, proposal.pr_num) == ("refs/pr/1", 1)
    raises(EntryNotFoundError, lambda: mine.delete_file("none.txt", **data))
    return second.oid, third.oid, source


def listing(second, third):
    tree = {entry.path: entry for entry in mine.list_repo_tree(recursive=True, expand=True, **data)}
    assert sorted(tree) == [
        ".gitattributes",
        ".gitignore",
        "README.md",
        "deep",
        "deep/copy.bin",
        "deep/large.bin",
        "deep/once.tar",
        "more.txt",
    ]
    large, copy = tree["deep/large.bin"], tree["deep/copy.bin"]
    assert (large.size, large.lfs.size, large.lfs.sha256) == (300_000, 300_000, copy.lfs.sha256)
    assert (large.last_commit.oid, copy.last_commit.oid) == (second, third)
    assert tree["more.txt"].lfs is None
    infos = mine.get_paths_info(paths=["deep", "more.txt", "none"], **data)
    assert [info.path for info in infos] == ["deep", "more.txt"]
    mine.create_branch(branch="side", revision=second, **data)
    mine.create_tag(tag="v1", revision=second, **data)
    refs = mine.list_repo_refs(include_pull_requests=True, **data)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": third, "side": second}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", second)]
    assert [proposal.ref for proposal in refs.pull_requests] == ["refs/pr/1"]
    titles = [commit.title for commit in mine.list_repo_commits(**data)]
    assert titles[0] == "third" and titles[-1] == "initial commit" and len(titles) == 4
    info = mine.dataset_info("me/data", files_metadata=True)
    assert {sibling.rfilename: sibling.size for sibling in info.siblings}["deep/large.bin"] == 300_000


def reading(second, source):
    read = lambda path, **words: Path(nobody.hf_hub_download(filename=path, **{**data, **words})).read_bytes()
    assert read("more.txt") == b"more"
    assert read("small.txt", revision="v1") == b"small"
    assert read("late.txt", revision="refs/pr/1") == b"late"
    assert read("deep/copy.bin") == (source / "deep" / "large.bin").read_bytes()
    snapshot = Path(nobody.snapshot_download(revision=second, local_dir=folder / "snapshot", **data))
    for path in ["small.txt", "deep/large.bin", "deep/once.tar", ".gitignore"]:
        assert (snapshot / path).read_bytes() == (source / path).read_bytes(), path
    assert not (snapshot / "left.log").exists() and not (snapshot / "more.txt").exists()
    branch = Path(mine.snapshot_download(revision="side", **data))
    assert branch.name == second
    # The test has ordered that its connection breaks.
    assert read("cut.bin", repo_id="me/cut") == bytes([7]) * (11 << 20)
    with huggingface_hub.HfFileSystem(token="hf_read").open("datasets/me/private/x.tar") as file:
        file.seek(5)
        assert file.read(3) == b"567"


def refusals():
    get = lambda api, repo, path="a.txt", **words: lambda: api.hf_hub_download(
        repo, path, repo_type="dataset", **words
    )
    raises(GatedRepoError, get(nobody, "me/gated"), 401)
    raises(GatedRepoError, get(other, "me/gated"), 403)
    raises(GatedRepoError, lambda: nobody.auth_check("me/gated", repo_type="dataset"), 401)
    assert nobody.dataset_info("me/gated").gated == "manual"
    raises(RepositoryNotFoundError, get(nobody, "me/private"), 401, but=GatedRepoError)
    raises(RepositoryNotFoundError, get(other, "me/private"), 404, but=GatedRepoError)
    raises(RepositoryNotFoundError, get(nobody, "me/none"), 401, but=GatedRepoError)
    raises(RepositoryNotFoundError, get(mine, "me/none"), 404, but=GatedRepoError)
    raises(RevisionNotFoundError, get(mine, "me/data", "more.txt", revision="none"), 404)
    raises(EntryNotFoundError, get(mine, "me/data", "none.txt"), 404)
    raises(HfHubHTTPError, HfApi(token="hf_wrong").whoami, 401)
    raises(HfHubHTTPError, lambda: HfApi(token="hf_read").upload_file(path_or_fileobj=b"x", path_in_repo="x", **data), 403)
    gated = lambda: datasets.load_dataset("me/gated", token=False)
    assert "gated" in str(raises(datasets.exceptions.DatasetNotFoundError, gated))


def pictures():
    picture = lambda at: Image.fromarray(numpy.full((4 + at, 6, 3), 40 * at, dtype=numpy.uint8))
    rows = {"image": [picture(at) for at in range(3)], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features)

    table.to_parquet(folder / "train-00000-of-00001.parquet")
    name = "data/train-00000-of-00001.parquet"
    mine.create_repo("me/pictures", repo_type="dataset")
    commit = mine.upload_file(
        path_or_fileobj=folder / "train-00000-of-00001.parquet", path_in_repo=name, repo_id="me/pictures", repo_type="dataset"
    )
    pushed = table.push_to_hub("me/pushed", token="hf_write")

    def check(read):
        read = list(read)
        assert [row["text"] for row in read] == ["a", "b", "c"]
        for at, row in enumerate(read):
            assert numpy.array_equal(numpy.asarray(row["image"]), numpy.asarray(picture(at)))

    check(datasets.load_dataset("me/pictures", revision=commit.oid, split="train", token=False))
    check(datasets.load_dataset("me/pushed", revision=pushed.oid, split="train", token=False))
    check(datasets.load_dataset("me/pictures", revision=commit.oid, split="train", token="hf_read", streaming=True))


second, third, source = writing()
listing(second, third)
reading(second, source)
refusals()
pictures()
print(f"huggingface_hub {huggingface_hub.__version__}, datasets {datasets.__version__}")
