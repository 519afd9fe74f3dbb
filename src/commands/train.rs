//! `train`: a training without a manifest, from a bucket index.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use clap::Args;
use ranks::World;
use serde::Deserialize;
use trainer::config::{TrainConfig, TrainOperations};

use crate::errors::{INTERRUPTED, OK, Usage};
use crate::settings::on_interrupt;
use crate::watch::{self, Watch, say};

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// A TOML file: index = "…" (a bucket index), out = "…" (a folder), and the keys of a manifest's train stage.
    config: PathBuf,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Deserialize)]
struct Places {
    index: PathBuf,
    out: PathBuf,
}

impl Train {
    pub(crate) fn run(&self) -> Result<u8> {
        let (places, config, operations) = self.read()?;
        let stop = Arc::new(AtomicBool::new(false));
        let handler = Arc::clone(&stop);
        on_interrupt(move || handler.store(true, Ordering::Relaxed))?;
        let world = World::from_environment()?;
        let events = match &world {
            // Of several ranks the first that holds the model shows how far they are: those that only load do not know.
            Some(world) if world.rank != trainer::first_model(&operations, world.size)? => watch::notes_of(world.rank),
            _ => watch::sink(self.watch.style()),
        };
        let job = trainer::Job {
            config: &config,
            operations: &operations,
            index: &places.index,
            workdir: None,
            folder: &places.out,
            stage: "train",
            events: &events,
            cancelled: &|| stop.load(Ordering::Relaxed),
            again: false,
        };
        let finished = match &world {
            Some(world) => trainer::train_together(&job, world)?,
            None => Some(trainer::train(&job)?),
        };
        let Some(finished) = finished else { return Ok(OK) };
        if self.watch.is_for_people() {
            say(finished.checkpoint.folder.display())?;
        }
        if finished.interrupted {
            watch::aside("Interrupted; the same command goes on from this checkpoint.");
            return Ok(INTERRUPTED);
        }
        Ok(OK)
    }

    fn read(&self) -> Result<(Places, TrainConfig, TrainOperations)> {
        let file = self.config.display();
        let text =
            std::fs::read_to_string(&self.config).map_err(|error| Usage(format!("{file} cannot be read: {error}")))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| Usage(format!("{file}: {error}")))?;
        let known = |value: serde_json::Value| {
            value.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
        };
        let mut keys = vec!["index".to_owned(), "out".to_owned()];
        keys.extend(known(serde_json::to_value(TrainConfig::default())?));
        keys.extend(known(serde_json::to_value(TrainOperations::default())?));
        if let Some(key) = table.keys().find(|key| !keys.contains(key)) {
            return Err(Usage(format!("{file}: unknown key `{key}`; known keys: {}", keys.join(", "))).into());
        }
        let fault = |error: toml::de::Error| Usage(format!("{file}: {}", error.message()));
        // As JSON, whose maps may have numbers for keys, as `loaders` has.
        let value = serde_json::to_value(&table)?;
        let read = |error: serde_json::Error| Usage(format!("{file}: {error}"));
        Ok((
            toml::from_str(&text).map_err(fault)?,
            serde_json::from_value(value.clone()).map_err(read)?,
            serde_json::from_value(value).map_err(read)?,
        ))
    }
}
