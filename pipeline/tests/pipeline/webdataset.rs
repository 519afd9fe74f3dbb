//! img2dataset's layout, whose files have the same names whoever makes them: what is committed stays what its record says.

use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use pipeline::manifest::Manifest;
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Options, run};
use pipeline::stage::Cancel;
use shards::digest::Digest;
use shards::event::{Event, EventSink};
use shards::storage::Workdir;

use crate::synthetic::drive;

/// A list of URLs, and a manifest that downloads it to one shard.
struct List(tempfile::TempDir);

impl List {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("urls.tsv")
    }

    /// Rows that are refused without any network: their address is a private one.
    fn write(&self, names: &[&str]) {
        let rows = names.iter().map(|name| format!("http://127.0.0.1:9/{name}.jpg\t{name}"));
        let lines: Vec<String> = std::iter::once("url\tcaption".to_owned()).chain(rows).collect();
        std::fs::write(self.path(), lines.join("\n") + "\n").unwrap();
    }

    fn plan(&self, workdir: &Workdir) -> Plan {
        let text = format!(
            "[pipeline]\nname = \"test\"\nworkdir = \"unused\"\nwarn_above = 1.0\n[stage.download]\nuses = \"download\"\n\
             urls = '{}'\noutput = \"webdataset\"\n",
            self.path().display()
        );
        let manifest = Manifest::parse(&text, Path::new("test.toml"), &[]).unwrap();
        Plan::in_workdir(&manifest, &pipeline::stages::registry(), &Selection::default(), workdir.clone()).unwrap()
    }
}

fn on_store(store: &Arc<InMemory>, scratch: &Path) -> Workdir {
    Workdir::on_store(Arc::clone(store) as Arc<dyn ObjectStore>, "work", "memory://work", scratch).unwrap()
}

/// The name of the only shard's record, each of whose files must be what it says, wherever the workdir lies.
fn checked(plan: &Plan) -> String {
    let stage = plan.stage("download").unwrap();
    let [record] = &stage.committed().collect::<Vec<_>>()[..] else { panic!("one partition, and it is made") };
    assert_eq!(record.data.len(), 3);
    for file in &record.data {
        assert!(file.file.starts_with("webdataset-"), "{}", file.file);
        let bytes = plan.workdir.read(&stage.folder.name_of(&file.file)).unwrap().unwrap();
        assert_eq!(Digest::of(&bytes), file.digest, "{}", file.file);
    }
    stage.folder.name_of(&record.file_name())
}

/// The stage's record and all files of partitions, within the workdir.
fn committed(workdir: &Workdir) -> Vec<String> {
    let names = workdir.list("stages/download", true).unwrap().into_iter().map(|entry| entry.name);
    let is_meant = |name: &String| ["part-", "quarantine/", "webdataset-"].iter().any(|start| name.starts_with(start));
    names.filter(is_meant).map(|name| format!("stages/download/{name}")).collect()
}

#[test]
fn a_list_that_is_again_what_it_was_is_downloaded_again() {
    let (list, store) = (List::new(), Arc::new(InMemory::new()));
    for names in [["a", "b"], ["c", "d"], ["a", "b"]] {
        list.write(&names);
        // On another machine each time, which has no copies of what is stored.
        let scratch = tempfile::tempdir().unwrap();
        let workdir = on_store(&store, scratch.path());
        let mut plan = list.plan(&workdir);
        assert_eq!(plan.stage("download").unwrap().to_run(), 1, "{names:?}: others have its files' names by now");
        drive(&mut plan);
        checked(&plan);
        let plan = list.plan(&workdir);
        assert!(plan.is_up_to_date());
        checked(&plan);
    }
}

#[test]
fn who_comes_late_leaves_alone_what_was_committed() {
    let (list, folder) = (List::new(), tempfile::tempdir().unwrap());
    list.write(&["a", "b"]);
    let locals = ["first", "late"].map(|name| Workdir::local(&folder.path().join(name)));
    let stored = ["scratch", "late-scratch"].map(|name| on_store(&Arc::default(), &folder.path().join(name)));
    for [first, late] in [locals, stored] {
        drive(&mut list.plan(&first));
        let mut plan = list.plan(&late);
        let sink = EventSink::new({
            let (first, late) = (first.clone(), late.clone());
            move |event| {
                if !matches!(event, Event::PartitionStarted { .. }) {
                    return;
                }
                // Who held the claim before, and was taken for dead, commits now.
                for name in committed(&first) {
                    late.replace(&name, &first.read(&name).unwrap().unwrap()).unwrap();
                }
            }
        });
        run(&mut plan, &Options { cores: 2, ..Options::default() }, &sink, &Cancel::default()).unwrap();
        for plan in [plan, list.plan(&late)] {
            let record = checked(&plan);
            assert_eq!(late.read(&record).unwrap(), first.read(&record).unwrap());
        }
        assert_eq!(committed(&late), committed(&first), "and of its own nothing stays");
    }
}
