//! Samples as webdataset tars: every image with its own bytes, captions and columns, in the order of the input.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;

use crate::samples::{Place, Ran, Sample, tiled};

/// The members of each tar in their order: key, ending, bytes.
fn members(ran: &Ran) -> Vec<Vec<(String, String, Vec<u8>)>> {
    let stage = ran.plan.stage("out").unwrap();
    let of = |record: &std::sync::Arc<shards::sidecar::Sidecar>| {
        let path = stage.fetch(&record.data[0]).unwrap();
        assert!(path.extension().is_some_and(|ending| ending == "tar"));
        let mut tar = tar::Archive::new(std::fs::File::open(path).unwrap());
        let read = |entry: std::io::Result<tar::Entry<std::fs::File>>| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let (key, ending) = name.split_once('.').unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (key.to_owned(), ending.to_owned(), bytes)
        };
        tar.entries().unwrap().map(read).collect()
    };
    ran.records().iter().map(of).collect()
}

#[test]
fn tars_hold_every_sample_in_order() {
    let place = Place::new();
    let mut rows: Vec<Vec<Sample>> = vec![(0..5).map(tiled).collect(), (5..8).map(tiled).collect()];
    rows[1][1].image = b"no image".to_vec();
    place.write_all(&rows);
    let ran = place.run("uses = \"export\"");
    assert_eq!(ran.counts("not_an_image"), (8, 7, 1));
    assert_eq!(ran.quarantine()[0][0], "src/00006");
    let tars = members(&ran);
    assert_eq!(tars.len(), 2);
    for (number, (members, rows)) in tars.iter().zip(&rows).enumerate() {
        let good: Vec<(usize, &Sample)> =
            rows.iter().enumerate().filter(|(_, row)| row.image.starts_with(b"\x89PNG")).collect();
        assert_eq!(members.len(), 3 * good.len());
        for (parts, (row, sample)) in members.chunks(3).zip(good) {
            let key = format!("{number:05}{row:09}");
            assert!(parts.iter().all(|(of, ..)| *of == key));
            let by_ending: BTreeMap<&str, &[u8]> =
                parts.iter().map(|(_, ending, bytes)| (ending.as_str(), bytes.as_slice())).collect();
            assert_eq!(by_ending["png"], sample.image);
            assert_eq!(by_ending["txt"], sample.caption.as_bytes());
            let json: Value = serde_json::from_slice(by_ending["json"]).unwrap();
            assert_eq!((&json["key"], &json["width"]), (&sample.key.clone().into(), &sample.width.into()));
            assert!(json.get("image").is_none());
        }
    }
    let again = place.run("uses = \"export\"\ncaption = \"nothing\"");
    assert!(members(&again).iter().flatten().all(|(_, ending, _)| ending != "txt"));
    assert_ne!(again.digests(), ran.digests());
}
