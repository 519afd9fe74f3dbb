//! `delete_inputs`: a tar is removed once the shard that holds its samples is committed, was read again and is what its record
//! says. A tar that could not be read to its end, or was touched since, is kept.
//!
//! A process that ends between the commit and here leaves its tars to the next run, which looks at all committed shards when it
//! starts.

use std::io;
use std::path::Path;

use shards::commit::StageFolder;
use shards::digest::Digest;
use shards::disk;
use shards::event::{Event, EventSink};
use shards::sidecar::Sidecar;

use super::division::{Division, TarRecord, records};
use super::error::ExtractError;
use crate::stage::StageError;
use crate::stages::outside::{digest, look};

/// Removes what is left of the tars behind a committed shard.
pub(super) fn delete(
    division: &Division,
    folder: &StageFolder,
    sidecar: &Sidecar,
    events: &EventSink,
) -> Result<(), StageError> {
    let records = records(sidecar);
    let left: Vec<(&TarRecord, &Path)> = records
        .iter()
        .filter(|tar| tar.whole)
        .filter_map(|tar| Some((tar, division.path(&tar.name)?)))
        .filter(|(_, path)| path.exists())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    verify(folder, sidecar)?;
    let tell = |text: String| events.send(Event::Note { stage: sidecar.stage.clone(), text });
    let mut removed = 0_u64;
    for (tar, path) in left {
        match is_as_read(tar, path) {
            Ok(true) => {
                disk::remove(path)?;
                removed += 1;
            }
            Ok(false) => tell(format!(
                "{} was touched after {} was made of it, and is kept; remove it by hand if it is not needed",
                path.display(),
                sidecar.partition
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StageError::io("read", path)(error)),
        }
    }
    if removed > 0 {
        tell(format!("{} is committed and was read again: removed its tars ({removed})", sidecar.partition));
    }
    Ok(())
}

fn is_as_read(tar: &TarRecord, path: &Path) -> io::Result<bool> {
    Ok(look(path)? == tar.state() && digest(path, tar.bytes)? == tar.digest)
}

/// Reads what was committed again, and compares it with its record.
fn verify(folder: &StageFolder, sidecar: &Sidecar) -> Result<(), StageError> {
    for file in sidecar.data.iter().chain(&sidecar.quarantine) {
        // What a store holds is looked at, not a copy of it.
        folder.workdir().let_go(&[folder.name_of(&file.file)]);
        let path = folder.fetch(file)?;
        if Digest::of_file(&path)? != file.digest {
            return Err(ExtractError::NotVerified { file: path.display().to_string() }.into());
        }
    }
    Ok(())
}
