//! `init`: a manifest to start from.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::errors::{OK, Usage};
use crate::watch::say;

#[derive(Debug, Args)]
pub(crate) struct Init {
    #[arg(value_enum)]
    template: Template,
    /// Where to write it [the template's name with .toml, here].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Template {
    /// Conceptual 12M: 12 million pictures with captions.
    Cc12m,
    /// LAION's metadata, or a part of it.
    Laion,
    /// A list of your own: URLs and captions.
    Urls,
    /// A folder of your own pictures.
    Folder,
}

impl Template {
    /// Its file's name, its text, and the list of URLs, or the folder, that it reads.
    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Cc12m => ("cc12m.toml", include_str!("init/cc12m.toml"), "cc12m.tsv"),
            Self::Laion => ("laion.toml", include_str!("init/laion.toml"), "laion.parquet"),
            Self::Urls => ("urls.toml", include_str!("init/urls.toml"), "urls.tsv"),
            Self::Folder => ("folder.toml", include_str!("init/folder.toml"), "pictures"),
        }
    }
}

impl Init {
    pub(crate) fn run(self) -> Result<u8> {
        let (name, text, input) = self.template.parts();
        let path = self.out.unwrap_or_else(|| name.into());
        let file = if self.force { File::create(&path) } else { File::create_new(&path) };
        let mut file = match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let text =
                    format!("{} exists already: --force replaces it, --out FILE writes elsewhere", path.display());
                return Err(Usage(text).into());
            }
            other => other.with_context(|| format!("cannot create {}", path.display()))?,
        };
        // What its first lines say to type is about itself.
        let text = text.replace(name, &path.to_string_lossy());
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        let path = path.display();
        say(format_args!(
            "wrote {path}\nIts first lines say where its input, {input}, comes from. Then: ferrotype plan {path}"
        ))?;
        Ok(OK)
    }
}
