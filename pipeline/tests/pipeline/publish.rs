//! `publish` through the engine, to a bucket in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use pipeline::stage::StageKind;
use pipeline::stages::publish::{self, Access};
use serde::Deserialize;
use serde_json::Value;
use shards::sidecar::Sidecar;

use crate::samples::{Columns, Place, Ran, Sample, tiled};

/// What tests find behind the `to` of their manifests: a kind's `build` knows nothing else.
static ELSEWHERE: Mutex<BTreeMap<String, Elsewhere>> = Mutex::new(BTreeMap::new());

#[derive(Clone)]
pub(crate) struct Elsewhere {
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
    pub(crate) store: Arc<InMemory>,
}

/// The kind, for the registries of tests: it goes by no variables of the environment.
pub(crate) fn kind() -> StageKind {
    StageKind {
        build: |parameters| {
            #[derive(Deserialize)]
            struct To {
                to: String,
            }
            let to = parameters.read::<To>().map(|To { to }| to).unwrap_or_default();
            let elsewhere = ELSEWHERE.lock().unwrap().get(&to).cloned();
            let nowhere = || Elsewhere { endpoint: "http://127.0.0.1:1".into(), token: None, store: Arc::default() };
            let Elsewhere { endpoint, token, store } = elsewhere.unwrap_or_else(nowhere);
            let open = move |_: &str| Ok(Arc::clone(&store) as Arc<dyn ObjectStore>);
            publish::build(parameters, Access { endpoint, token, store: Box::new(open) })
        },
        ..publish::kind()
    }
}

/// The table of a publication, to a place of its own for each test.
pub(crate) fn to(to: &str, elsewhere: Elsewhere) -> String {
    ELSEWHERE.lock().unwrap().insert(to.to_owned(), elsewhere);
    format!("uses = \"publish\"\nto = \"{to}\"")
}

fn in_memory(bucket: &str) -> (Arc<InMemory>, String) {
    let store: Arc<InMemory> = Arc::default();
    let elsewhere = Elsewhere { endpoint: String::new(), token: None, store: Arc::clone(&store) };
    (store, to(&format!("s3://{bucket}/pets"), elsewhere))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// All objects by their names, with the number of their writing.
fn objects(store: &InMemory) -> BTreeMap<String, u64> {
    let found: Vec<object_store::ObjectMeta> = block_on(store.list(None).try_collect()).unwrap();
    found.into_iter().map(|meta| (meta.location.to_string(), meta.e_tag.unwrap().parse().unwrap())).collect()
}

fn content(store: &InMemory, name: &str) -> Vec<u8> {
    block_on(async { store.get(&ObjectPath::from(name)).await.unwrap().bytes().await.unwrap() }).to_vec()
}

pub(crate) fn rows(start: usize, count: usize) -> Vec<Sample> {
    (start..start + count).map(tiled).collect()
}

/// The committed shards of a stage, byte for byte.
pub(crate) fn shards(ran: &Ran, stage: &str) -> Vec<Vec<u8>> {
    let stage = ran.plan.stage(stage).unwrap();
    let files = stage.committed().flat_map(|sidecar| sidecar.data.clone());
    files.map(|file| std::fs::read(stage.fetch(&file).unwrap()).unwrap()).collect()
}

pub(crate) fn record(ran: &Ran) -> Arc<Sidecar> {
    ran.records().remove(0)
}

pub(crate) fn detail(ran: &Ran, key: &str) -> u64 {
    record(ran).details[key].as_u64().unwrap()
}

#[test]
fn a_bucket_gets_the_shards_as_they_are_and_then_the_card() {
    let place = Place::new();
    place.write_all(&[rows(0, 3), rows(3, 2)]);
    let (store, table) = in_memory("whole");
    let ran = place.run(&table);
    let written = objects(&store);
    let names: Vec<&str> = written.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["pets/README.md", "pets/data/train-00000-of-00002.parquet", "pets/data/train-00001-of-00002.parquet"]
    );
    assert!(names[1..].iter().all(|name| written[*name] < written["pets/README.md"]), "{written:?}");
    let published: Vec<Vec<u8>> = names[1..].iter().map(|name| content(&store, name)).collect();
    assert_eq!(published, shards(&ran, "in"));
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "files")), (2, 2));
    let record = record(&ran);
    assert_eq!((record.rows_in, record.rows_out, record.data.len()), (5, 5, 0));
    assert_eq!(record.details["to"], "s3://whole/pets");
    assert!(place.run(&table).made().is_empty(), "it is published");
}

#[test]
fn what_a_bucket_has_is_not_put_again_and_what_is_no_longer_part_of_it_goes() {
    let place = Place::new();
    place.write_all(&[rows(0, 3), rows(3, 2), rows(5, 2)]);
    let (store, table) = in_memory("again");
    place.run(&table);
    let first = objects(&store);
    let by_hand = |name: &str| block_on(store.put(&ObjectPath::from(name), PutPayload::from_static(b"x"))).unwrap();
    by_hand("pets/notes.txt");
    by_hand("pets/data/test-00000-of-00001.parquet");

    // Another card: the shards stay.
    let ran = place.run(&format!("{table}\ndescription = \"Pets.\""));
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "bytes_sent")), (0, 0));
    let second = objects(&store);
    assert!(second["pets/README.md"] > first["pets/README.md"]);
    assert!(first.iter().all(|(name, written)| name.ends_with("README.md") || second[name] == *written), "{second:?}");

    // One that is as long as ours and is not ours.
    let name = "pets/data/train-00001-of-00003.parquet";
    let length = content(&store, name).len();
    block_on(store.put(&ObjectPath::from(name), PutPayload::from(vec![0; length]))).unwrap();
    // And a shard that changes.
    place.write(0, &rows(20, 3), Columns::All);
    let ran = place.run(&table);
    assert_eq!(detail(&ran, "files_sent"), 2);
    let published = |of: usize| (0..of).map(move |n| format!("pets/data/train-{n:05}-of-{of:05}.parquet"));
    assert_eq!(published(3).map(|name| content(&store, &name)).collect::<Vec<_>>(), shards(&ran, "in"));
    // With another number of shards all have other names: the store copies what it has, and only the new one is sent.
    place.remove(2);
    let ran = place.run(&table);
    assert_eq!((detail(&ran, "files_sent"), detail(&ran, "files_copied"), detail(&ran, "files_removed")), (0, 2, 3));
    let names: Vec<String> = objects(&store).into_keys().filter(|name| name.contains("train-")).collect();
    assert_eq!(names, published(2).collect::<Vec<_>>());
    place.write(2, &rows(30, 1), Columns::All);
    let ran = place.run(&table);
    let now = shards(&ran, "in");
    assert_eq!(published(3).map(|name| content(&store, &name)).collect::<Vec<_>>(), now);
    assert_eq!((detail(&ran, "files_copied"), detail(&ran, "bytes_sent")), (2, now[2].len() as u64));
    assert_eq!(
        [content(&store, "pets/notes.txt"), content(&store, "pets/data/test-00000-of-00001.parquet")],
        [b"x", b"x"]
    );
}

#[test]
fn the_card_shows_pictures_counts_and_stages_and_nothing_of_this_machine() {
    let place = Place::new();
    let mut samples = rows(0, 4);
    samples[3].image = b"no image".to_vec();
    place.write_all(&[samples, rows(4, 2)]);
    let (store, publication) = in_memory("card");
    let bucket = "uses = \"bucket\"\nmax_resolution = [4, 8]\npatch_size = 4";
    let table = format!(
        "{bucket}\n[stage.published]\nfrom = [\"out@4\", \"out@8\"]\n{publication}\nlicense = \"other\"\nlicense_name = \"ours\"\n\
         title = \"Pets: small\"\ntags = [\"cats\"]\nsources = [\"pictures | of pets\"]\n"
    );
    let ran = place.run(&table);
    let card = String::from_utf8(content(&store, "pets/README.md")).unwrap();
    let head = "---\nlicense: \"other\"\nlicense_name: \"ours\"\npretty_name: \"Pets: small\"\ntask_categories:\n- \"text-to-image\"\n\
                tags:\n- \"cats\"\n- \"ferrotype\"\nsize_categories:\n- \"n<1K\"\nconfigs:\n- config_name: \"4\"\n  data_files:\n  \
                - split: train\n    path: \"data/4/train-*-of-00002.parquet\"\n- config_name: \"8\"\n";
    assert!(card.starts_with(head), "{card}");
    for expected in [
        "  - name: \"image\"\n    dtype: image\n",
        "    num_examples: 5\n",
        "# Pets: small\n",
        "dataset = datasets.load_dataset(\"A COPY OF THIS FOLDER\", \"8\", split=\"train\")",
        "| 8 | 5 | 5 | 2 | ",
        "- pictures | of pets\n",
        "## Buckets of 8\n",
        "| in | shards@1 | 6 | 6 |  |\n",
        &format!("| out | {} | 6 | 5 | not_an_image: 1 |\n", pipeline::stages::bucket::kind().versioned_name()),
        "    \"max_resolution\": [\n",
    ] {
        assert!(card.contains(expected), "{expected} is not in\n{card}");
    }
    let (first, second) = (card.find("| in | shards@1"), card.find("| out | bucket@"));
    assert!(first < second, "in the order in which they were made");
    assert!(!card.contains(&*place.path().to_string_lossy()), "{card}");
    let names: Vec<String> = objects(&store).into_keys().collect();
    assert!(names.contains(&"pets/data/8/train-00001-of-00002.parquet".to_owned()), "{names:?}");
    let stage = ran.plan.stage("published").unwrap();
    assert_eq!(std::fs::read_to_string(stage.folder.path().join("README.md")).unwrap(), card);
}

#[test]
fn a_dry_run_sends_nothing_and_counts_for_nothing() {
    let place = Place::new();
    place.write_all(&[rows(0, 3)]);
    let (store, table) = in_memory("dry");
    let ran = place.run(&format!("{table}\ndry_run = true"));
    assert!(objects(&store).is_empty());
    let record = record(&ran);
    assert_eq!(record.details["would_publish"][0]["file"], "data/train-00000-of-00001.parquet");
    assert!(record.details["card"].as_str().unwrap().contains("num_examples: 3"));
    assert_eq!(
        place.only_missing(&table).stage("out").unwrap().to_run(),
        1,
        "nor where whatever is there is good enough"
    );
    assert_eq!(place.run(&table).made(), ["part-00000"]);
    assert_eq!(objects(&store).len(), 2);
    assert_eq!(place.only_missing(&format!("{table}\ntitle = \"Other\"")).stage("out").unwrap().to_run(), 0);

    let rehearsal = place.rehearsal(&table);
    assert_eq!(rehearsal.stage("out").unwrap().semantics["dry_run"], Value::Bool(true));
}

#[test]
fn input_without_rows_or_with_two_sets_of_columns_is_refused() {
    let place = Place::new();
    place.write_all(&[rows(0, 3)]);
    let (store, table) = in_memory("refused");
    place.run(&table);
    place.write(0, &[], Columns::All);
    let words = place.failure(&table);
    assert!(words.contains("no rows") && words.contains("nothing that is there was touched"), "{words}");
    place.write(0, &rows(0, 1), Columns::All);
    place.write(1, &rows(1, 1), Columns::WithoutSha256);
    let words = place.failure(&table);
    assert!(words.contains("sha256 (Utf8)") && words.contains("one set of columns"), "{words}");
    assert_eq!(objects(&store).len(), 2, "what was published stays");
}
