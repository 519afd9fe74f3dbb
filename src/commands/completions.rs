//! `completions`: what a shell needs to know to complete our commands.

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::errors::OK;

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// For which shell. bash: put `source <(ferrotype completions bash)` into ~/.bashrc. fish: write it to
    /// ~/.config/fish/completions/ferrotype.fish. zsh: write it to a file _ferrotype in a folder of $fpath.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<u8> {
        // clap_complete panics when its writer fails, as a closed pipe does.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Arguments::command(), "ferrotype", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(OK)
    }
}
