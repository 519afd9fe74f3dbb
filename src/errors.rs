//! How errors are shown and which exit code they have. Libraries return typed errors; only this file formats them.

use std::error::Error;
use std::io::ErrorKind;

#[cfg(feature = "pipeline")]
use cluster::slurm::SlurmError;

use crate::watch;

/// Done.
pub(crate) const OK: u8 = 0;
/// Failed.
pub(crate) const FAILED: u8 = 1;
/// A bad manifest, or bad usage; nothing was started.
pub(crate) const USAGE: u8 = 2;
/// Done, with more rows refused than the warning threshold.
#[cfg(feature = "pipeline")]
pub(crate) const LOSSES: u8 = 3;
/// Another rank of the same training was lost, and this one has ended for it.
pub(crate) const BYSTANDER: u8 = 4;
/// Interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// A fault in what the user wrote: ends with [`USAGE`].
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// The exit code of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let lost = |cause: &(dyn Error + 'static)| matches!(cause.downcast_ref(), Some(ranks::RankError::PeerLost { .. }));
    // SQL of the command line. A stage's has the run's error around it, which had made something by then.
    #[cfg(feature = "pipeline")]
    if matches!(error.downcast_ref(), Some(pipeline::stage::StageError::Sql(_))) {
        return USAGE;
    }
    match error {
        error if error.chain().any(is_usage) => USAGE,
        error if error.chain().any(lost) => BYSTANDER,
        _ => FAILED,
    }
}

/// Whether nobody reads our output any more, as when `head` has seen enough: that is no failure. What goes wrong between machines has
/// an error of its own around it.
pub(crate) fn reader_has_left(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn is_usage(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "pipeline")]
    if error.is::<pipeline::manifest::Diagnostics>()
        || matches!(
            error.downcast_ref(),
            Some(pipeline::plan::PlanError::Manifest(_) | pipeline::plan::PlanError::UnknownStage { .. })
        )
        || matches!(error.downcast_ref(), Some(pipeline::run::RunError::Obstructed(_)))
        || matches!(
            error.downcast_ref(),
            Some(SlurmError::Obstructed(_) | SlurmError::OtherTasks { .. } | SlurmError::Alone { .. })
        )
    {
        return true;
    }
    error.is::<Usage>()
        || matches!(error.downcast_ref(), Some(sampler::SampleError::Request { .. }))
        || matches!(error.downcast_ref(), Some(trainer::TrainError::Configuration { .. }))
        || matches!(error.downcast_ref(), Some(evaluation::EvaluationError::Networks { .. }))
}

/// The error and its causes, each said once, and what to do where that is known.
pub(crate) fn in_words(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut said = String::new();
    for (i, cause) in error.chain().enumerate() {
        let words = cause.to_string();
        // A transparent error repeats its source.
        if words == said {
            continue;
        }
        if i > 0 {
            text += "\n  because: ";
        }
        text += &words.replace('\n', "\n  ");
        said = words;
    }
    if let Some(hint) = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>().and_then(hint)) {
        text += "\n  hint: ";
        text += hint;
    }
    text
}

/// What a command comes to. A panic by which libtorch refuses something, and which nothing in the command has caught, is its error.
pub(crate) fn attempt(command: impl FnOnce() -> anyhow::Result<u8>) -> anyhow::Result<u8> {
    models::ModelError::attempt("a computation", || Ok(command()))?
}

/// Has the panics by which libtorch refuses something say so in a line, unless RUST_BACKTRACE asks for where they were. What catches them,
/// [`attempt`] if nothing else does, says the rest, which a page of libtorch's frames would hide.
pub(crate) fn shorten_panics_of_libtorch() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match models::refusal_of_libtorch(panic.payload()) {
        Some(refusal) => watch::aside(format_args!("note: libtorch refuses: {refusal}")),
        None => usual(panic),
    }));
}

fn hint(error: &std::io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free some space (or use another --workdir) and run the same command again; what was committed is kept"
        }
        ErrorKind::PermissionDenied => {
            "this user may not do that there: change the folder's owner or mode, or use another workdir"
        }
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only: use another workdir",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_refuses_of_a_command_is_its_error() {
        // As tensors' infallible methods report it.
        let refusal = r#"called `Result::unwrap()` on an `Err` value: Torch("no room for this\nframe #0")"#.to_owned();
        let error = attempt(|| std::panic::panic_any(refusal)).unwrap_err();
        let words = in_words(&error);
        assert!(words.starts_with("error: a computation failed in libtorch\n  because: "), "{words}");
        assert!(words.ends_with("no room for this"), "{words}");
        assert_eq!((exit_code(&error), attempt(|| Ok(OK)).ok()), (FAILED, Some(OK)));
    }
}
