//! `fetch`: a model's files, or any others, from the Hugging Face Hub, a URL or a store, into a folder.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use pipeline::stage::StageError;
use pipeline::stages::fetch::fetch_into;
use shards::event::Event;

use crate::errors::{INTERRUPTED, OK};
use crate::settings::cancelled_by_interrupt;
use crate::watch::{self, Watch};

/// Between two lines of progress.
const EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// hf://OWNER/NAME of a model, hf://datasets/OWNER/NAME@REVISION/FOLDER, https://… or s3://BUCKET/FOLDER. HF_TOKEN is sent to
    /// the Hub only.
    url: String,
    /// The folder that the files go to, under the paths that they have there.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Only files whose path matches, such as "*.safetensors"; a star stands for any letters, slashes too. Several times: any of them.
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Not files whose path matches.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    #[command(flatten)]
    watch: Watch,
}

impl Fetch {
    pub(crate) fn run(&self) -> Result<u8> {
        let cancel = cancelled_by_interrupt()?;
        let events = watch::sink(self.watch.style());
        let told = Mutex::new(None::<Instant>);
        let tell = |here: u64, all: u64| {
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.is_none_or(|at| at.elapsed() >= EVERY) || here == all {
                *told = Some(Instant::now());
                events.send(Event::Progress {
                    stage: "fetch".to_owned(),
                    unit: "MB",
                    done: here / 1_000_000,
                    total: Some(all / 1_000_000),
                    outcomes: std::collections::BTreeMap::new(),
                    note: String::new(),
                });
            }
        };
        match fetch_into(&self.url, [&self.include, &self.exclude], &self.to, &cancel, &tell) {
            Ok(fetched) => {
                let (files, there) = (fetched.files, fetched.there);
                let text = format!(
                    "{files} files, {:.1} MB, are in {}; {there} of them were there already",
                    fetched.bytes as f64 / 1e6,
                    self.to.display()
                );
                events.send(Event::Note { stage: "fetch".to_owned(), text });
                Ok(OK)
            }
            Err(StageError::Cancelled) => {
                watch::aside("interrupted; what came is kept, and the same command goes on");
                Ok(INTERRUPTED)
            }
            Err(error) => Err(error.into()),
        }
    }
}
