//! Every message that a bad manifest can raise, word for word: see `snapshots/`. INSTA_UPDATE=always writes them anew; read
//! what changed. The last test looks through the sources for diagnostics that no case here raises.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pipeline::manifest::{Diagnostic, Diagnostics, Manifest, Parameters};
use pipeline::plan::{Plan, PlanError};
use pipeline::stage::{Facts, Law, Outcome, Partitioning, Registry, Stage, StageError, StageKind, Task, as_it_is};
use serde_json::Value;

const GOOD: &str = r#"[pipeline]
name = "pets"
workdir = "FOLDER/work"

[stage.download]
uses = "download"
urls = "FOLDER/pets.tsv"

[stage.filter]
uses = "filter"
from = "download"
where = "width > 10"

[stage.bucket]
uses = "bucket"
from = "filter"
max_resolution = 32
patch_size = 4

[stage.index]
uses = "index"
from = "bucket"
"#;

/// A change to the good manifest, or a `--set`, by which it becomes a bad one.
enum Case {
    Change(&'static str, &'static str),
    Set(&'static str),
    /// Another manifest altogether.
    Whole(&'static str),
}
use Case::{Change, Set, Whole};

const SYNTAX: &[Case] = &[
    Change("name = \"pets\"", "name = "),
    Change("name = \"pets\"", "name = pets"),
    Change("name = \"pets\"", "name = \"pets"),
    Change("name = \"pets\"", "name = \"pets\"\nname = \"dogs\""),
    Change("[stage.index]", "[stage.bucket]"),
    Change("[stage.index]", "[stage.index"),
    Change("name = \"pets\"", "name \"pets\""),
    Change("max_resolution = 32", "max_resolution = 32 64"),
    Change("max_resolution = 32", "max_resolution = 032"),
];

const TOP: &[Case] = &[
    Whole(""),
    Change("[pipeline]", "[pipelin]"),
    Change("[pipeline]", "[settings]"),
    Change("[pipeline]\nname = \"pets\"\nworkdir = \"FOLDER/work\"", "pipeline = 5"),
    Change("name = \"pets\"\n", ""),
    Change("workdir = \"FOLDER/work\"\n", ""),
    Change("name = \"pets\"", "name = 5"),
    Change("name = \"pets\"", "name = \"pets\"\nwarn_abov = 0.5"),
    Change("name = \"pets\"", "name = \"pets\"\nwarn_above = \"much\""),
    Change("name = \"pets\"", "name = \"pets\"\nnotify = true"),
    Change("name = \"pets\"", "name = \"pets\"\nnotify = \"hooks.example.com/SECRET\""),
    Change("name = \"pets\"", "name = \"pets\"\nnotify = \"slack://hooks.example.com/SECRET\""),
    Change("name = \"pets\"", "name = \"pets\"\nslurm.time = true"),
    Change("name = \"pets\"", "name = \"pets\"\nslurm.at_once = 0"),
    Change("FOLDER/work", "ftp://host/prefix"),
    Change("FOLDER/work", "s3://"),
    Change("name = \"pets\"", "name = \"pets\"\nscratch = 5"),
    Change("FOLDER/work", "{env:FERROTYPE_NOT_SET}/work"),
    Change("where = \"width > 10\"", "where = \"width > {env:FERROTYPE_NOT_SET}\""),
    Change("[stage.index]", "[vars]\nwidth = 1.5\n\n[stage.index]"),
    Whole("[pipeline]\nname = \"pets\"\nworkdir = \"work\"\n"),
    Whole("[pipeline]\nname = \"pets\"\nworkdir = \"work\"\n\n[stage]\n"),
    Whole("stage = 5\n\n[pipeline]\nname = \"pets\"\nworkdir = \"work\"\n"),
];

const SETS: &[Case] = &[
    Set("stage.bucket.max_resolution"),
    Set("stage.bucket.max_resolution.x=5"),
    Set("stage.bucket.max_resolutoin=64"),
    Set("stage.bucket.max_resolution=large"),
    Set("stage.bukket.max_resolution=64"),
    Set("pipeline.notify=htps://user:SECRET@hooks.example.com/SECRET?key=SECRET"),
    Set("pipeline.notfy=\"https://hooks.example.com/SECRET\""),
];

const STAGES: &[Case] = &[
    Change("[stage.index]\nuses = \"index\"\nfrom = \"bucket\"", "[stage]\nindex = 5"),
    Change("[stage.index]", "[[stage.index]]"),
    Change("[stage.index]", "[stage.\"../index\"]"),
    Change("[stage.index]", "[stage.\"\"]"),
    Change("uses = \"index\"\n", ""),
    Change("uses = \"index\"", "uses = 5"),
    Change("uses = \"index\"", "uses = \"indx\""),
    Change("uses = \"index\"", "uses = \"quantise\""),
    Change("from = \"bucket\"", "from = 5"),
    Change("from = \"bucket\"", "from = [\"bucket\", 5]"),
    Change("from = \"bucket\"", "from = \"buket\""),
    Change("from = \"bucket\"", "from = \"zzz\""),
    Change("from = \"bucket\"", "from = \"bucket@32\""),
    Change("max_resolution = 32", "max_resolution = [8, 32]"),
    Change("from = \"bucket\"", "from = \"bukket@32\""),
    Change("from = \"bucket\"", "from = \"index\""),
    Change("from = \"download\"", "from = \"index\""),
    Change("from = \"bucket\"\n", ""),
    Change("from = \"bucket\"", "from = [\"bucket\", \"filter\"]"),
    Change("uses = \"download\"", "uses = \"download\"\nfrom = \"filter\""),
    Change("uses = \"index\"", "uses = \"pair\""),
    Change("uses = \"index\"", "uses = \"misfit\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nformat = \"csv\""),
    Change("from = \"bucket\"", "from = \"bucket\"\non_bad_row = \"ignore\""),
    Change("from = \"bucket\"", "from = \"bucket\"\non_bad_row = 5"),
    Change("from = \"bucket\"", "from = \"bucket\"\nfail_if = 0.5"),
    Change("from = \"bucket\"", "from = \"bucket\"\nfail_if = { after_rows = 100 }"),
    Change("from = \"bucket\"", "from = \"bucket\"\nfail_if = { success_below = 0.5, after_rows = -1 }"),
    Change("from = \"bucket\"", "from = \"bucket\"\nconcurrency = 0"),
    Change("from = \"bucket\"", "from = \"bucket\"\nmemory = \"much\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nmemory = -1"),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm = \"gpu\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.cpu = 4"),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.cpus = 0"),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.mem = \"much\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.partition = \"gpu; rm -rf /\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.lines = [\"module load cuda\\nrm -rf /\"]"),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm.time = \"an hour\""),
    Change("from = \"bucket\"", "from = \"bucket\"\nslurm = { time = 5, grace = 300 }"),
    Change("from = \"bucket\"", "from = \"bucket\"\nfail_if = { success_belo = 0.5, success_below = 0.5 }"),
];

const DOWNLOAD: &[Case] = &[
    Change("urls = \"FOLDER/pets.tsv\"\n", ""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = 5"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/nowhere.tsv\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/empty.tsv\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ncolumns = { url = \"URL\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ncolumns = { caption = \"zzz\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ncolumns = { caption = 5 }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ncolumns = { captio = \"text\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ncolumns = \"url\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nrows_per_shard = 0"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nin_flight = 0"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nin_flight = 1.5"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\npartitions = -1"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nmax_bytes = \"20 MB\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ntimeout = 0"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nresize = { mode = \"border\", size = 0 }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nresize = { format = \"webp\", quality = 101 }"),
    Change(
        "urls = \"FOLDER/pets.tsv\"",
        "urls = \"FOLDER/pets.tsv\"\nverify_hash = { column = \"url\", type = \"none\" }",
    ),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nmin_bytes_per_second = -1"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nper_host = { per_second = -0.5 }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nnameservers = [\"localhost\"]"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\noutput = \"webdataset\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\ntimeout = nan"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nretries = 5_000_000_000"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nconnect_to = { host = \"localhost\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nconnect_to = [\"host\"]"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nallow_networks = [\"home\"]"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nallow_networks = \"10.0.0.0/8\""),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nallow_networks = [\n  \"10.0.0.0/8\",\n  10,\n]"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nadditional_columns = { score = \"float\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nadditional_columns = { score = \"number\" }"),
    Change("urls = \"FOLDER/pets.tsv\"", "urls = \"FOLDER/pets.tsv\"\nquotes = \"yes\""),
];

const OTHERS: &[Case] = &[
    Set("stage.bucket.max_aspect=0.5"),
    Set("stage.index.files=FOLDER"),
    Set("stage.index.files=[]"),
    Change("uses = \"index\"\nfrom = \"bucket\"", "uses = \"index\"\nfiles = \"FOLDER/nowhere/*.parquet\""),
    Change("uses = \"index\"", "uses = \"index\"\nfiles = \"FOLDER/pets.tsv\""),
    Change("uses = \"index\"\nfrom = \"bucket\"", "uses = \"repack\"\nfiles = \"FOLDER/nowhere\""),
    Set("stage.bucket.merge_small=-1"),
    Change("where = \"width > 10\"", "where = \"width >\""),
    Change("where = \"width > 10\"", "where = \"width > > 10\""),
    Change("where = \"width > 10\"", "where = \"(width > 10\""),
    Change("where = \"width > 10\"", "where = \"width > 10) --\""),
    Change("where = \"width > 10\"", "where = \"1 = 1); DROP TABLE samples; SELECT (1\""),
    Change("where = \"width > 10\"", "where = \"\"\"\nwidth > 10\n  AND height < < 20\n\"\"\""),
    Change("where = \"width > 10\"", "where = \"caption = 'a\""),
    Change("where = \"width > 10\"", "where = true"),
    Change("where = \"width > 10\"", "min_side = -5"),
    Change("where = \"width > 10\"", "min_captions = 5"),
    Change("max_resolution = 32", "max_resolutoin = 32"),
    Change("max_resolution = 32\n", ""),
    Change("max_resolution = 32", "max_resolution = \"large\""),
    Change("max_resolution = 32", "max_resolution = -32"),
    Change("max_resolution = 32", "max_resolution = 32.5"),
    Change("max_resolution = 32", "max_resolution = true"),
    Change("max_resolution = 32", "max_resolution = []"),
    Change("max_resolution = 32", "max_resolution = [32, 0]"),
    Change("max_resolution = 32", "max_resolution = [32, \"64\"]"),
    Change("max_resolution = 32", "max_resolution = [32, 2]"),
    Change("max_resolution = 32", "max_resolution = 0"),
    Change(
        BUCKETS_AND_INDEX,
        "max_resolution = [8, 32]\npatch_size = 4\n\n[stage.index]\nuses = \"index\"\nfrom = \"bucket@24\"",
    ),
    Change(
        BUCKETS_AND_INDEX,
        "max_resolution = [256, 512]\npatch_size = 4\n\n[stage.index]\nuses = \"index\"\nfrom = \"bucket@255\"",
    ),
    Change("max_resolution = 32", "max_resolution = { width = 32 }"),
    Change("patch_size = 4", "patch_size = 0"),
    Change("patch_size = 4", "patch_size = 64"),
    Change("patch_size = 4", "patch_size = 4\nquality = 0"),
    Change("patch_size = 4", "patch_size = 4\nquality = 300"),
    Change("patch_size = 4", "patch_size = 4\nformat = \"bmp\""),
    Change("patch_size = 4", "patch_size = 4\nformat = 5"),
];

/// A bucket stage's parameters, and the index over it.
const BUCKETS_AND_INDEX: &str =
    "max_resolution = 32\npatch_size = 4\n\n[stage.index]\nuses = \"index\"\nfrom = \"bucket\"";

/// What stands for the filter in the stages that choose rows.
const FILTER: &str = "uses = \"filter\"\nfrom = \"download\"\nwhere = \"width > 10\"";

const CHOOSING: &[Case] = &[
    Change(FILTER, "uses = \"subset\"\nfrom = \"download\""),
    Change(FILTER, "uses = \"subset\"\nfrom = \"download\"\nfraction = 1.5"),
    Change(FILTER, "uses = \"subset\"\nfrom = \"download\"\nlimit = 0"),
    Change(FILTER, "uses = \"dedup\"\nfrom = \"download\"\ndistance = 17"),
    Change(FILTER, "uses = \"dedup\"\nfrom = \"download\"\nby = \"feeling\""),
    Change(FILTER, "uses = \"sql\"\nfrom = \"download\""),
    Change(FILTER, "uses = \"sql\"\nfrom = \"download\"\nquery = \"SELEC key FROM input\""),
    Change(FILTER, "uses = \"sql\"\nfrom = \"download\"\nquery = \"SELECT * FROM input; DROP TABLE input\""),
    Change(FILTER, "uses = \"sql\"\nfrom = \"download\"\nquery = \"SELECT key, octet_length(image) AS n FROM input\""),
];

const IMPORT: &[Case] = &[
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"import\""),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"import\"\nfolder = \"FOLDER/nowhere\""),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"import\"\nfolder = \"FOLDER\"\nrows_per_shard = 0",
    ),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"import\"\nfolder = \"FOLDER\"\ncaption = \"txt\"",
    ),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\ncaption = \"class\""),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\nclasses = \"FOLDER/nowhere.json\""),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\nclasses = \"FOLDER/pets.tsv\""),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\nfiles = \"FOLDER\""),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\ncolumns = { key = \"id\" }"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\nrows_per_shard = 100\nkeep = [\"url\"]"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\""),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER/nowhere/*.parquet\"\nkeep = [\"url\"]"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\ninclude = \"*.tsv\"\nkeep = [\"url\"]"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\nrows_per_file = 0\nkeep = [\"url\"]"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\ncolumns = { key = \"id\", caption = \"said[one]\" }"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\ncolumns = { image = \"image\", width = \"w\" }"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\ncolumns = { key = \"id\" }\nkeep = { score = \"float\" }"),
    Change(URLS, "uses = \"import\"\nfiles = \"FOLDER\"\nkeep = [\"class\"]\nconstants = { class = \"pet\" }"),
    Change(FILTER, "uses = \"import\"\nfrom = \"download\"\nkeep = [\"url\"]\nlimit = 5"),
    Change(FILTER, "uses = \"import\"\nfrom = \"download\"\nfiles = \"FOLDER\"\nkeep = [\"url\"]"),
    Change(URLS, "uses = \"import\"\nfolder = \"FOLDER\"\nquotes = true"),
];

/// What reads from outside in the good manifest.
const URLS: &str = "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"";

const EXTRACT: &[Case] = &[
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\""),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\"\ntars = 5"),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\"\ntars = \"FOLDER/nowhere\""),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\"\ntars = \"FOLDER/nowhere/*.tar\""),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\"\ntars = \"s3://bucket/laion\""),
    Change("uses = \"download\"\nurls = \"FOLDER/pets.tsv\"", "uses = \"extract\"\ntars = []"),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"extract\"\ntars = \"FOLDER\"\ntars_per_shard = 0",
    ),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"extract\"\ntars = \"FOLDER\"\nadditional_columns = { width = \"number\" }",
    ),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"extract\"\ntars = \"FOLDER\"\nadditional_columns = { punsafe = \"float\" }",
    ),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"extract\"\ntars = \"FOLDER\"\nadditional_columns = [\"punsafe\"]",
    ),
    Change(
        "uses = \"download\"\nurls = \"FOLDER/pets.tsv\"",
        "uses = \"extract\"\ntars = \"FOLDER\"\ndelete_inputs = true\nsamples_per_tar = 5",
    ),
    Change(URLS, "uses = \"extract\"\ntars = \"FOLDER\"\nclasses = \"FOLDER/nowhere.json\""),
    Change(
        URLS,
        "uses = \"extract\"\ntars = \"FOLDER\"\nclasses = \"FOLDER/c.json\"\nadditional_columns = { class = \"text\" }",
    ),
    Change(FILTER, "uses = \"extract\"\nfrom = \"download\"\ndelete_inputs = true"),
    Change(FILTER, "uses = \"extract\"\nfrom = \"download\"\ntars = \"FOLDER\""),
];

/// What stands for the index in publications.
const INDEX: &str = "uses = \"index\"\nfrom = \"bucket\"";

const PUBLISH: &[Case] = &[
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"data/pets\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"hf://me/pets\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"hf://datasets/me\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"hf://datasets/me/pets/data\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"hf://datasets/me/pets@refs/convert/parquet\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\nlicense = \"CC BY 4.0\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\nlicense_name = \"ours\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\ntitle = \"\""),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\ntags = [\"cats\", \"\"]"),
    Change(
        INDEX,
        "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\ntask_categories = [\"Text to image\"]",
    ),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\nuploads = 0"),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\nfiles_per_commit = 0"),
    Change(INDEX, "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\nlicence = \"mit\""),
    Change(
        INDEX,
        "uses = \"publish\"\nfrom = \"bucket\"\nto = \"s3://pets/256\"\n\n[stage.more]\nuses = \"filter\"\nfrom = \"index\"",
    ),
];

const JOINING: &[Case] = &[
    Change(URLS, "uses = \"fetch\""),
    Change(URLS, "uses = \"fetch\"\nurl = []"),
    Change(URLS, "uses = \"fetch\"\nurl = \"FOLDER/pets.tsv\""),
    Change(URLS, "uses = \"fetch\"\nurl = \"hf://datasets/me\""),
    Change(URLS, "uses = \"fetch\"\nurl = \"ftp://me:SECRET@host/x?SECRET\""),
    Change(URLS, "uses = \"fetch\"\nurl = \"hf://datasets/me/pets\"\nin_flight = 0"),
    Change(INDEX, "uses = \"merge\"\nfrom = \"bucket\""),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"bucket\"]"),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\non = {}"),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\ncolumns = []"),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\ncolumns = 5"),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\ncolumns = [\"image\"]"),
    Change(
        INDEX,
        "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\ncolumns = [\"recaption\"]\nfallback = { caption = \"caption\" }",
    ),
    Change(INDEX, "uses = \"merge\"\nfrom = [\"bucket\", \"filter\"]\nunmatched = \"lose\""),
    Change(INDEX, "uses = \"union\"\nfrom = \"bucket\""),
    Change(INDEX, "uses = \"union\"\nfrom = [\"bucket\", \"filter\"]\ncolumns = \"key\""),
];

const GROUPS: [(&str, &[Case]); 11] = [
    ("syntax", SYNTAX),
    ("pipeline_table", TOP),
    ("set", SETS),
    ("stages", STAGES),
    ("download", DOWNLOAD),
    ("import", IMPORT),
    ("extract", EXTRACT),
    ("filter_and_bucket", OTHERS),
    ("choosing", CHOOSING),
    ("joining", JOINING),
    ("publish", PUBLISH),
];

/// A kind that needs two or three inputs, and one that never fits its input.
struct Fussy;

impl Stage for Fussy {
    fn semantics(&self) -> Value {
        Value::Null
    }

    fn partitioning(&self) -> Partitioning {
        Partitioning::Whole
    }

    fn law(&self) -> Law {
        Law::Reads
    }

    fn check(&self, _: &Facts) -> Vec<(&'static str, String)> {
        vec![("size", "its input is of another size".to_owned())]
    }

    fn process(&self, _: &Task) -> Result<Outcome, StageError> {
        Err(StageError::failed("it is only ever planned"))
    }
}

fn registry() -> Registry {
    let mut registry = pipeline::stages::registry();
    registry.add(crate::publish::kind());
    for (name, inputs) in [("pair", (2, 3)), ("misfit", (1, 1))] {
        let build: fn(&Parameters) -> Result<Box<dyn Stage>, Diagnostic> = |_| Ok(Box::new(Fussy));
        registry.add(StageKind {
            name,
            version: 1,
            about: "For tests.",
            inputs,
            schemas: Vec::new,
            rehearse: as_it_is,
            build,
        });
    }
    registry
}

/// A folder with lists of URLs.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pets.tsv"), "url\tcaption\nhttp://x/1\ta dog\n").unwrap();
    std::fs::write(folder.path().join("ragged.csv"), "url,caption\nhttp://x/1,a dog\nhttp://x/2,a cat, asleep\n")
        .unwrap();
    std::fs::write(folder.path().join("empty.tsv"), "").unwrap();
    folder
}

/// The faults of a case, and what it is called.
fn faults(case: &Case, folder: &Path) -> (String, Diagnostics) {
    let (title, text, sets) = match case {
        Change(from, to) => {
            assert_eq!(GOOD.matches(from).count(), 1, "{from} is there once");
            let to_show = if to.is_empty() { "(nothing)" } else { to };
            (format!("{}  →  {to_show}", from.trim_end()), GOOD.replace(from, to), Vec::new())
        }
        Set(set) => (format!("--set {set}"), GOOD.to_owned(), vec![(*set).to_owned()]),
        Whole(text) => ((*text).to_owned(), (*text).to_owned(), Vec::new()),
    };
    let text = text.replace("FOLDER", &folder.to_string_lossy());
    let planned = Manifest::parse(&text, Path::new("pets.toml"), &sets)
        .map_err(PlanError::from)
        .and_then(|manifest| Plan::new(&manifest, &registry()));
    match planned {
        Err(PlanError::Manifest(faults)) => (title, faults),
        Err(other) => panic!("{title}: {other}"),
        Ok(_) => panic!("{title}: nothing is wrong with it"),
    }
}

/// Messages without what differs from one run to the next.
fn redacted(text: &str, folder: &Path) -> String {
    text.replace(&*folder.to_string_lossy(), "[folder]")
}

fn indented(text: &str, by: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{by}{line}");
        all
    })
}

#[test]
fn messages_are_as_written_here() {
    let folder = folder();
    for (name, cases) in GROUPS {
        let mut all = String::new();
        for case in cases {
            let (title, faults) = faults(case, folder.path());
            let said = redacted(&faults.to_string(), folder.path());
            assert!(!said.contains("SECRET"), "{said}");
            let _ = writeln!(all, "{}{said}\n", indented(&title, "│ "));
        }
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, all);
        });
    }
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_lines() {
    let folder = folder();
    let bad = Whole(
        "[pipeline]\nnam = \"pets\"\nworkdir = \"work\"\n\n[stage.a]\nuses = \"indx\"\n\n[stage.b]\nuses = \"bucket\"\nfrom = 5\n",
    );
    insta::assert_snapshot!(faults(&bad, folder.path()).1, @"
    pets.toml:1: in [pipeline], missing key `name`
    pets.toml:2: unknown key `nam` in [pipeline]
        did you mean `name`?
    pets.toml:10: stage.b.from is 5
        expected a stage's name, or a list of names
    ");
    let bad = Change(
        "max_resolution = 32\npatch_size = 4\n\n[stage.index]\nuses = \"index\"",
        "max_resolutoin = 32\n\n[stage.index]\nuses = \"indx\"",
    );
    insta::assert_snapshot!(faults(&bad, folder.path()).1, @"
    pets.toml:14: in [stage.bucket], missing key `max_resolution`
    pets.toml:17: unknown key `max_resolutoin` in [stage.bucket]
        did you mean `max_resolution`?
    pets.toml:20: stage.index uses `indx`, which is no stage kind
        did you mean `index`?
    ");
}

fn missing_file(folder: &Path) -> Diagnostics {
    Manifest::read(&folder.join("nowhere.toml"), &[]).unwrap_err()
}

#[test]
fn a_manifest_or_list_that_cannot_be_read_is_named() {
    let folder = folder();
    insta::assert_snapshot!(redacted(&missing_file(folder.path()).to_string(), folder.path()), @"
    [folder]/nowhere.toml: cannot be read: No such file or directory (os error 2)
        `ferrotype init` writes one to start from
    ");
    std::fs::write(folder.path().join("picture.toml"), b"\xff\xd8\xff").unwrap();
    let faults = Manifest::read(&folder.path().join("picture.toml"), &[]).unwrap_err();
    insta::assert_snapshot!(redacted(&faults.to_string(), folder.path()), @"[folder]/picture.toml: cannot be read: stream did not contain valid UTF-8");

    // Found while the list is cut into partitions: no fault of the manifest, but the same reader sees it.
    let text = GOOD.replace("pets.tsv", "ragged.csv").replace("FOLDER", &folder.path().to_string_lossy());
    let manifest = Manifest::parse(&text, Path::new("pets.toml"), &[]).unwrap();
    let Err(PlanError::Stage { stage, source }) = Plan::new(&manifest, &registry()) else {
        panic!("it has a ragged list")
    };
    insta::assert_snapshot!(redacted(&format!("{stage}: {source}"), folder.path()), @"download: line 3 of the list [folder]/ragged.csv has 3 fields instead of 2; does a text hold the separator? In a .csv file quotation marks protect it, and with quotes = true in a .tsv file");
}

/// Lines of our sources that raise a diagnostic: (file below src, line).
fn places_in_sources() -> BTreeSet<(String, u32)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut places = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").enumerate();
            for (i, line) in lines {
                let raises = line.contains("Diagnostic::new(") || line.contains(".fault(");
                // `Parameters::fault` raises for its caller.
                let on_behalf = file == "manifest/parameters.rs" && line.contains("self.owner");
                if raises && !line.trim_start().starts_with("//") && !(on_behalf && line.contains("in {}, {message}")) {
                    places.insert((file.clone(), i as u32 + 1));
                }
            }
        }
    }
    places
}

#[test]
fn no_diagnostic_goes_without_a_case() {
    let folder = folder();
    let mut raised: Vec<Diagnostic> = missing_file(folder.path()).0;
    for (_, cases) in GROUPS {
        raised.extend(cases.iter().flat_map(|case| faults(case, folder.path()).1.0));
    }
    let raised: BTreeSet<(String, u32)> = raised
        .iter()
        .filter_map(|fault| {
            Some((fault.raised_at.file().rsplit_once("pipeline/src/")?.1.to_owned(), fault.raised_at.line()))
        })
        .collect();
    let places = places_in_sources();
    let untested: Vec<_> = places.difference(&raised).collect();
    assert!(untested.is_empty(), "add a case to this file for the diagnostics raised at {untested:?}");
    let unseen: Vec<_> = raised.difference(&places).collect();
    assert!(unseen.is_empty(), "raised where this test does not look: {unseen:?}");
}
