//! `ferrotype loader`: what a training would read, and that loading an epoch gives every image.

use serde_json::Value;

use crate::support::{bucketed, folder, run, text};

#[test]
fn an_index_is_described_and_loaded() {
    let folder = folder();
    let sizes: Vec<(u32, u32)> = (0..30).map(|n| if n < 20 { (32, 32) } else { (32, 16) }).collect();
    let stages = "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n\
                  [stage.train]\nuses = \"train\"\nfrom = \"index\"\nbatch_size = 12\n";
    let manifest = bucketed(folder.path(), &sizes, stages);
    let early = run(&["loader", &manifest]);
    assert_eq!(early.status.code(), Some(2));
    assert!(text(&early.stderr).contains("stage index has not run yet"), "{}", text(&early.stderr));
    assert!(run(&["run", &manifest, "--until", "index", "-q"]).status.success());

    // In the batches of the manifest's training.
    let described = run(&["loader", &manifest]);
    let words = text(&described.stdout);
    assert!(words.starts_with("30 images in 2 buckets and 1 shards; 2.5 batches of 12 an epoch."), "{words}");
    assert!(words.contains("1 buckets have fewer than 12 images, 10 in all"), "{words}");

    let bench = ["loader", &manifest, "--bench", "--json", "--batch-size", "10", "--steps", "6"];
    let loaded = run(&bench);
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    let found: Value = serde_json::from_slice(&loaded.stdout).unwrap();
    assert_eq!((&found["images"], &found["batches"], &found["replaced"]), (&60.into(), &6.into(), &0.into()));
    assert_eq!(found["pixel_bytes"], 2 * 3 * (20 * 32 * 32 + 10 * 32 * 16), "two epochs: every image twice");

    // A bit turns in the first image of the shard.
    let shard = std::fs::read_dir(folder.path().join("work/stages/bucket")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|ending| ending == "parquet").then_some(path)
    });
    let shard = shard.unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.windows(4).position(|window| window == b"IDAT").unwrap();
    bytes[at + 6] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let damaged: Value = serde_json::from_slice(&run(&bench).stdout).unwrap();
    assert_eq!(damaged["replaced"], 2);
    let named = damaged["bad_images"][0].as_str().unwrap();
    assert!(named.starts_with("row 0 of ") && named.contains("checksum"), "{named}");
    let stopped =
        run(&["loader", &manifest, "--bench", "--batch-size", "10", "--steps", "6", "--on-bad-image", "stop"]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(text(&stopped.stderr).contains("row 0 of "), "{}", text(&stopped.stderr));

    let unknown = run(&["loader", &manifest, "--bench", "--caption", "recaption"]);
    assert!(text(&unknown.stderr).contains("has no column `recaption`"), "{}", text(&unknown.stderr));
}
