//! `launch`: several processes of one training on this machine.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use ranks::{ChildExit, LaunchEnd, LaunchOptions};

use crate::errors::{BYSTANDER, INTERRUPTED, OK, Usage};
use crate::settings::on_interrupt;

#[derive(Debug, Args)]
#[command(after_help = "Example: ferrotype launch -n 4 -- train run.toml")]
pub(crate) struct Launch {
    /// Processes on this machine, one for each GPU.
    #[arg(short = 'n', long)]
    processes: usize,
    /// Machines in all; each of them launches the same, with a --node-rank of its own.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// This machine's number among them, from 0.
    #[arg(long, default_value_t = 0)]
    node_rank: usize,
    /// Where rank 0 is found, which is on the machine with --node-rank 0.
    #[arg(long, default_value = "127.0.0.1")]
    master_address: String,
    /// The port at which ranks meet [one that is free; with several machines it must be given].
    #[arg(long)]
    master_port: Option<u16>,
    /// The command that each process runs, as it is written after `ferrotype`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Launch {
    pub(crate) fn run(&self) -> Result<u8> {
        let signal = Arc::new(AtomicI32::new(0));
        let handler = Arc::clone(&signal);
        on_interrupt(move || handler.store(libc::SIGTERM, Ordering::Release))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let options = LaunchOptions {
            processes: self.processes,
            nodes: self.nodes,
            node_rank: self.node_rank,
            master_address: self.master_address.clone(),
            master_port: self.master_port,
            bystander_code: Some(i32::from(BYSTANDER)),
            signal,
        };
        let end = ranks::launch(program.as_os_str(), &self.command, &options).map_err(|error| match error {
            ranks::LaunchError::Option { .. } => anyhow::Error::new(Usage(error.to_string())),
            error => error.into(),
        })?;
        match end {
            LaunchEnd { failure: None, .. } => Ok(OK),
            LaunchEnd { failure: Some(failure), .. } if failure.exit == ChildExit::Code(i32::from(INTERRUPTED)) => {
                Ok(INTERRUPTED)
            }
            LaunchEnd { failure: Some(failure), .. } => bail!("{failure}; what it said stands above"),
        }
    }
}
