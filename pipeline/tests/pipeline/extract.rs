//! `extract` through the engine: tars of every kind, and broken and hostile ones.

mod life;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::{Float64Type, Int64Type};
use flate2::Compression;
use flate2::write::GzEncoder;
use pipeline::manifest::Manifest;
use pipeline::plan::{Plan, PlanError};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::columns;
use shards::event::{Event, EventSink};
use tar::{Builder, EntryType, Header};

use crate::samples::{Ran, tile};

/// A folder with tars and a workdir.
struct Place {
    folder: tempfile::TempDir,
}

/// What a run did, and told.
struct Done {
    ran: Ran,
    notes: Vec<String>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("laion")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("laion").join(name)
    }

    /// Writes a tar, as if a minute ago: what is newer is not kept in caches.
    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
        let file = std::fs::File::options().append(true).open(self.path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_mins(1)).unwrap();
    }

    /// The tars that are there.
    fn there(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// `table` holds further keys.
    fn manifest(&self, tars: &str, table: &str) -> Manifest {
        let folder = self.folder.path().display();
        let text = format!(
            "[pipeline]\nname = \"test\"\nworkdir = '{folder}/work'\nwarn_above = 1.0\n\
             [stage.out]\nuses = \"extract\"\ntars = '{folder}/{tars}'\n{table}\n"
        );
        Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap()
    }

    fn plan(&self, table: &str) -> Result<Plan, PlanError> {
        Plan::new(&self.manifest("laion", table), &pipeline::stages::registry())
    }

    fn run(&self, table: &str) -> Done {
        drive(self.plan(table).unwrap()).unwrap()
    }
}

/// Runs a plan; an error in words, with its causes.
fn drive(mut plan: Plan) -> Result<Done, String> {
    let told = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let sink = EventSink::new({
        let told = Arc::clone(&told);
        move |event| match event {
            Event::PartitionStarted { stage, partition } => told.lock().unwrap().0.push((stage, partition)),
            Event::Note { text, .. } => told.lock().unwrap().1.push(text),
            _ => {}
        }
    });
    let outcome = run(&mut plan, &Options { cores: 2, ..Options::default() }, &sink, &Cancel::default());
    let outcome = outcome.map_err(|error| in_words(&error))?;
    let (mut started, notes) = std::mem::take(&mut *told.lock().unwrap());
    started.sort();
    Ok(Done { ran: Ran { plan, outcome, started }, notes })
}

fn in_words(error: &dyn Error) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    words.join(": ")
}

/// Adds a member; the name is written as it is.
fn add(tar: &mut Builder<Vec<u8>>, mut header: Header, name: &str, data: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

fn add_all(tar: &mut Builder<Vec<u8>>, members: &[(&str, &[u8])]) {
    for (name, data) in members {
        add(tar, Header::new_gnu(), name, data);
    }
}

/// A tar of these members.
fn of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    add_all(&mut tar, members);
    tar.into_inner().unwrap()
}

/// A tar with a sample for each number.
fn numbered(numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for n in numbers {
        add(&mut tar, Header::new_ustar(), &format!("{n:05}.jpg"), &tile(n));
        let json = format!("{{\"url\": \"http://x/{n}\", \"similarity\": 0.{n}}}");
        add(&mut tar, Header::new_ustar(), &format!("{n:05}.json"), json.as_bytes());
        add(&mut tar, Header::new_ustar(), &format!("{n:05}.txt"), format!("number {n}").as_bytes());
    }
    tar.into_inner().unwrap()
}

impl Done {
    fn dropped(&self) -> BTreeMap<String, u64> {
        self.ran.plan.stage("out").unwrap().totals().dropped
    }

    fn observed(&self, what: &str) -> u64 {
        self.ran.plan.stage("out").unwrap().totals().observed.get(what).copied().unwrap_or(0)
    }

    /// Rows in and out.
    fn rows(&self) -> (u64, u64) {
        let totals = self.ran.plan.stage("out").unwrap().totals();
        assert_eq!(totals.rows_in, totals.rows_out + totals.rows_dropped());
        (totals.rows_in, totals.rows_out)
    }
}

#[test]
fn tars_of_every_format_become_rows_with_the_bytes_they_hold() {
    let place = Place::new();
    let long = format!("{}/{}", "folder".repeat(20), "name".repeat(20));
    for (n, header) in [Header::new_old(), Header::new_ustar(), Header::new_gnu()].into_iter().enumerate() {
        let mut tar = Builder::new(Vec::new());
        let mut folder = header.clone();
        folder.set_entry_type(EntryType::Directory);
        add(&mut tar, folder, "00/", b"");
        add(&mut tar, header.clone(), &format!("00/{n}.webp"), &tile(n as u8));
        add(&mut tar, header, &format!("00/{n}.txt"), b" a caption \n");
        place.write(&format!("{n}.tar"), &tar.into_inner().unwrap());
    }
    let mut gnu = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(tile(3).len() as u64);
    gnu.append_data(&mut header, format!("{long}.png"), tile(3).as_slice()).unwrap();
    place.write("3.tar", &gnu.into_inner().unwrap());
    let mut pax = Builder::new(Vec::new());
    let (path, size) = (format!("{long}.png"), tile(4).len().to_string());
    pax.append_pax_extensions([("path", path.as_bytes()), ("size", size.as_bytes())]).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(0);
    header.set_cksum();
    pax.append(&header, tile(4).as_slice()).unwrap();
    place.write("4.tar", &pax.into_inner().unwrap());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&numbered([5])).unwrap();
    place.write("5.tar.gz", &gzip.finish().unwrap());
    place.write("not-a-tar.json", b"{}");

    for check in ["decode", "header"] {
        let done = place.run(&format!("tars_per_shard = 3\ncheck = \"{check}\""));
        // The same key twice in a shard: the second is refused.
        let of_long = format!("laion/{long}");
        assert_eq!(
            done.ran.keys(),
            [vec!["laion/00/0", "laion/00/1", "laion/00/2"], vec![of_long.as_str(), "laion/00005"]]
        );
        assert_eq!(done.dropped(), BTreeMap::from([("duplicate_key".to_owned(), 1)]));
        let images: Vec<Vec<u8>> = done.ran.images().concat().into_iter().map(|(_, image)| image).collect();
        assert_eq!(images, [0, 1, 2, 3, 5].map(tile));
        assert_eq!(done.observed("skipped: folders, links and devices"), 3);
        let (shard, batch) = &done.ran.batches()[0];
        assert_eq!(shard.text(batch, columns::CAPTION).unwrap().value(1), "a caption");
        assert_eq!(shard.text(batch, columns::SHA256).unwrap().value(1).len(), 64);
        assert_eq!(done.observed("without a caption"), 1);
    }
    let alone = place.run("tars_per_shard = 1\nsource = \"mine\"");
    assert_eq!(alone.ran.made().len(), 2, "shards keep their tars");
    assert_eq!(alone.ran.keys()[0][0], "mine/00/0");
}

#[test]
fn captions_urls_and_fields_come_from_the_json() {
    let place = Place::new();
    place.write(
        "a.tar",
        &of(&[
            ("1.jpg", &tile(1)),
            ("1.json", br#"{"url": "http://x/1", "caption": "json", "similarity": 0.5, "n": 7, "nsfw": "UNLIKELY"}"#),
            ("1.txt", b"text"),
            ("2.JPG", &tile(2)),
            (
                "2.json",
                br#"{"caption": "json", "alt": "other", "similarity": "0.25", "n": "x", "nsfw": ["a"], "ok": true}"#,
            ),
            ("2.cls", b"7"),
            ("3.jpg", &tile(3)),
            ("3.png", &tile(4)),
        ]),
    );
    let table = "additional_columns = { similarity = \"number\", n = \"integer\", nsfw = \"text\", ok = \"boolean\" }";
    let done = place.run(table);
    let (shard, batch) = &done.ran.batches()[0];
    let names: Vec<_> = shard.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(
        names,
        ["key", "image", "caption", "url", "width", "height", "sha256", "n", "nsfw", "ok", "similarity", "checksum"]
    );
    let text = |name| shard.text(batch, name).unwrap().iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(text(columns::CAPTION), [some("text"), some("json"), some("")]);
    assert_eq!(text(columns::URL), [some("http://x/1"), some(""), some("")]);
    assert_eq!(text("nsfw"), [some("UNLIKELY"), some("[\"a\"]"), None]);
    let column = |name| batch.column_by_name(name).unwrap();
    assert_eq!(
        column("similarity").as_primitive::<Float64Type>().iter().collect::<Vec<_>>(),
        [Some(0.5), Some(0.25), None]
    );
    assert_eq!(column("n").as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(7), None, None]);
    let ok: &BooleanArray = column("ok").as_boolean();
    assert_eq!(ok.iter().collect::<Vec<_>>(), [None, Some(true), None]);
    assert_eq!(done.observed("n is no integer"), 1);
    assert_eq!(done.observed("has more images, of which the first is taken"), 1);
    assert_eq!(done.ran.images()[0][2].1, tile(3));

    let other = place.run("columns = { caption = \"alt\" }");
    let (shard, batch) = &other.ran.batches()[0];
    assert_eq!(shard.text(batch, columns::CAPTION).unwrap().value(1), "other");
}

#[test]
fn what_cannot_be_used_is_refused_with_its_reason() {
    let place = Place::new();
    let mut sparse = Header::new_gnu();
    sparse.set_entry_type(EntryType::GNUSparse);
    let mut tar = Builder::new(Vec::new());
    let large = crate::samples::encoded(&image::RgbImage::new(9, 9), image::ImageFormat::Png);
    add_all(
        &mut tar,
        &[
            ("ok.png", &tile(1)),
            ("ok.txt", b"fine"),
            ("none.txt", b"nothing to see"),
            ("html.jpg", b"<html></html>"),
            ("half.png", &tile(1)[..tile(1).len() / 2]),
            ("large.png", &large),
            ("fat.png", &[0; 1001]),
            ("json.png", &tile(2)),
            ("json.json", b"{oops"),
            ("latin.png", &tile(2)),
            ("latin.txt", b"\xe4"),
            ("twice.png", &tile(2)),
            ("twice.PNG", &tile(3)),
            ("ok.png", &tile(4)),
        ],
    );
    add(&mut tar, sparse, "holes.png", &tile(5));
    add(&mut tar, Header::new_gnu(), "last.png", &tile(6));
    place.write("a.tar", &tar.into_inner().unwrap());
    let done = place.run("max_pixels = 60\nmax_bytes = 1000");
    assert_eq!(done.rows(), (12, 2));
    assert_eq!(done.ran.keys(), [["laion/ok", "laion/last"]]);
    let refused: Vec<(String, String)> =
        done.ran.quarantine().into_iter().map(|[key, reason, _]| (key.replace("laion/", ""), reason)).collect();
    let refused: Vec<(&str, &str)> = refused.iter().map(|(key, reason)| (key.as_str(), reason.as_str())).collect();
    assert_eq!(
        refused,
        [
            ("none", "no_image"),
            ("html", "not_an_image"),
            ("half", "damaged_image"),
            ("large", "too_many_pixels"),
            ("fat", "too_large"),
            ("json", "damaged_member"),
            ("latin", "damaged_member"),
            ("twice", "duplicate_member"),
            ("ok", "duplicate_key"),
            ("holes", "sparse_member"),
        ]
    );
    assert!(done.ran.quarantine()[0][2].starts_with("a.tar, byte "), "{:?}", done.ran.quarantine()[0]);
    let failed = drive(place.plan("max_pixels = 60\nmax_bytes = 1000\non_bad_row = \"fail\"\nsource = \"x\"").unwrap());
    assert!(failed.err().unwrap().contains("no_image"));
}

#[test]
fn a_sample_without_an_image_is_refused_with_the_endings_that_it_has() {
    let place = Place::new();
    place.write("a.tar", &of(&[("1.image.jpg", &tile(1)), ("1.txt", b"one"), ("2.txt", b"two")]));
    let done = place.run("");
    assert_eq!(done.dropped(), BTreeMap::from([("no_image".to_owned(), 2)]));
    let said: Vec<String> = done.ran.quarantine().into_iter().map(|[_, _, message]| message).collect();
    let is_told = |n: usize, endings: &str| {
        said[n].contains(&format!("its members end in {endings}, and an image's name is the key and one of .jpg,"))
    };
    assert!(is_told(0, ".txt, .image.jpg") && is_told(1, ".txt"), "{said:?}");
}

#[test]
fn hostile_names_and_sizes_are_only_data() {
    let place = Place::new();
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, Header::new_gnu(), "../../escaped.png", &tile(1));
    add(&mut tar, Header::new_gnu(), "/tmp/ferrotype-escaped.png", &tile(2));
    for (kind, name) in
        [(EntryType::Symlink, "link.png"), (EntryType::Link, "hard.png"), (EntryType::Block, "disk.png")]
    {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_link_name("/etc/passwd").unwrap();
        add(&mut tar, header, name, b"");
    }
    add(&mut tar, Header::new_gnu(), "._junk.png", b"AppleDouble");
    add(&mut tar, Header::new_gnu(), "README", b"no ending");
    add(&mut tar, Header::new_gnu(), "fine.png", &tile(3));
    place.write("a.tar", &tar.into_inner().unwrap());
    let done = place.run("");
    assert_eq!(done.ran.keys(), [["laion/../../escaped", "laion//tmp/ferrotype-escaped", "laion/fine"]]);
    assert_eq!(done.observed("skipped: folders, links and devices"), 3);
    assert_eq!(done.observed("skipped: members without a key"), 2);
    assert!(!Path::new("/tmp/ferrotype-escaped.png").exists());

    // Sizes that no file has: of a member, of names, and one that overflows. What is under way at such a header is refused.
    for (name, kind, size, reason, rows) in [
        ("1.png", EntryType::Regular, 1 << 62, "truncated_tar", (2, 1)),
        ("name", EntryType::GNULongName, 1 << 40, "damaged_tar", (1, 0)),
        ("pax", EntryType::XHeader, 1 << 40, "damaged_tar", (1, 0)),
        ("2.png", EntryType::Regular, u64::MAX, "damaged_tar", (1, 0)),
    ] {
        let place = Place::new();
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_cksum();
        let mut bytes = of(&[("0.png", &tile(0))]);
        bytes.truncate(1024);
        bytes.extend(header.as_bytes());
        bytes.extend([7; 4000]);
        place.write("a.tar", &bytes);
        let done = place.run("");
        assert_eq!((done.rows(), done.dropped()), (rows, BTreeMap::from([(reason.to_owned(), 1)])), "{name}");
        assert!(done.notes[0].contains("a.tar"), "{:?}", done.notes);
    }
}

#[test]
fn a_broken_tar_gives_what_comes_before_the_break() {
    let whole = numbered(0..3);
    let sample = numbered([0]).len() - 1024;
    // (bytes of the tar, rows out, the key that is refused)
    for (bytes, out, key) in [
        (0, 0, "laion/a.tar"),
        (100, 0, "laion/a.tar"),
        (600, 0, "laion/00000"),
        (sample + 100, 0, "laion/00000"),
        (sample + 600, 1, "laion/00001"),
        (2 * sample - 512, 1, "laion/00001"),
        (3 * sample, 2, "laion/00002"),
        (3 * sample + 511, 2, "laion/00002"),
    ] {
        let place = Place::new();
        place.write("a.tar", &whole[..bytes]);
        let done = place.run("");
        assert_eq!(done.rows(), (out + 1, out), "{bytes}");
        assert_eq!(done.dropped(), BTreeMap::from([("truncated_tar".to_owned(), 1)]), "{bytes}");
        let [refused, _, message] = &done.ran.quarantine()[0];
        assert_eq!(refused, key, "{bytes}");
        assert!(message.contains("a.tar") && message.contains(&format!("byte {bytes}")), "{message}");
        assert_eq!(done.observed("truncated tar"), 1);
        assert_eq!(done.notes.len(), 1, "{:?}", done.notes);
    }
    let place = Place::new();
    let mut flipped = whole.clone();
    flipped[sample + 3] ^= 1;
    place.write("a.tar", &flipped);
    place.write("b.tar", b"<html>this is what came instead of a tar</html>".repeat(40).as_slice());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&whole).unwrap();
    let gzip = gzip.finish().unwrap();
    place.write("c.tar.gz", &gzip[..gzip.len() / 2]);
    let mut twice = numbered([7]);
    twice.extend(numbered([8]));
    place.write("d.tar", &twice);
    let done = place.run("");
    let reasons: Vec<String> = done.ran.quarantine().into_iter().map(|[_, reason, _]| reason).collect();
    assert_eq!(reasons, ["damaged_tar", "damaged_tar", "truncated_tar"]);
    assert_eq!(done.ran.keys()[0], ["laion/00000"; 0], "the sample before a broken header may not be whole");
    assert_eq!(done.ran.keys()[3], ["laion/00007"]);
    assert_eq!(done.observed("tars with more behind their end"), 1);
}

#[test]
fn the_same_tars_give_the_same_bytes() {
    let table = "tars_per_shard = 2\nadditional_columns = { similarity = \"number\" }";
    let digests = || {
        let place = Place::new();
        for n in 0..5 {
            place.write(&format!("{n}.tar"), &numbered(10 * n..10 * n + 4));
        }
        place.run(table).ran.digests()
    };
    let first = digests();
    assert_eq!(first.len(), 3);
    assert_eq!(first, digests());
}
