//! What several commands share: the interrupt, prompts from files, sizes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shards::bucket::BucketSize;

use crate::errors::{INTERRUPTED, Usage};
use crate::process;

/// Signals this close to the first one are the same request: systemd and Slurm signal all processes of a job, and who started this
/// one sends theirs on.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// Calls `stop` at the first SIGINT, SIGTERM or SIGHUP; one that comes over a second later ends the process at once. A SIGHUP that this
/// process was started to ignore stays ignored.
pub(crate) fn on_interrupt(stop: impl Fn() + Send + 'static) -> Result<()> {
    // The handler is installed for it in any case.
    let outlives_terminal = process::is_ignored(libc::SIGHUP);
    let mut first: Option<Instant> = None;
    ctrlc::set_handler(move || match first {
        None => {
            first = Some(Instant::now());
            stop();
        }
        Some(first) if first.elapsed() < SAME_REQUEST => {}
        Some(_) => std::process::exit(i32::from(INTERRUPTED)),
    })
    .context("cannot listen for interrupts")?;
    if outlives_terminal {
        process::ignore(libc::SIGHUP);
    }
    Ok(())
}

/// Is cancelled by Ctrl-C.
#[cfg(feature = "pipeline")]
pub(crate) fn cancelled_by_interrupt() -> Result<pipeline::stage::Cancel> {
    let cancel = pipeline::stage::Cancel::default();
    let handler = cancel.clone();
    on_interrupt(move || handler.cancel())?;
    Ok(cancel)
}

/// Calls `stop` at SIGUSR1, by which schedulers warn of the end of a job's time.
#[cfg(feature = "pipeline")]
pub(crate) fn at_end_of_time(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start a runtime")?;
    let mut warnings = {
        let _entered = runtime.enter();
        signal(SignalKind::user_defined1()).context("cannot listen for SIGUSR1")?
    };
    std::thread::spawn(move || {
        if runtime.block_on(warnings.recv()).is_some() {
            stop();
        }
    });
    Ok(())
}

/// The lines of a file that are neither empty nor comments.
pub(crate) fn lines(path: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Usage(format!("{} cannot be read: {error}", path.display())))?;
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
}

/// For clap: `WIDTHxHEIGHT`, or one number for a square.
pub(crate) fn size(text: &str) -> Result<BucketSize, String> {
    if let Ok(side) = text.parse::<u32>() {
        return Ok(BucketSize { width: side, height: side });
    }
    text.parse().map_err(|error: shards::bucket::InvalidBucketSize| error.to_string())
}
