//! Deliberate faults, for tests: every change that [`crate::disk`] makes passes a numbered point, and a test can let the
//! process end there, or the disk refuse. Nothing arms it but tests; unarmed, a point costs one relaxed load.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A change to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    CreateFolder,
    Create,
    Write,
    Sync,
    Link,
    Rename,
    Remove,
}

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends, as by SIGKILL or a power failure: no destructor runs. A write is cut in half.
    End,
    /// From here on the disk is full.
    Full,
    /// From here on the file system is read-only.
    ReadOnly,
    /// This operation fails with an input/output error; later ones succeed.
    Once,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static POINTS: AtomicU64 = AtomicU64::new(0);
static PLAN: Mutex<Option<(Fault, u64)>> = Mutex::new(None);

/// Counts points from now on; with a fault, it strikes at the point of this number (from 0).
pub fn arm(fault: Option<(Fault, u64)>) {
    *PLAN.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    POINTS.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
}

/// Points passed since [`arm`].
pub fn points() -> u64 {
    POINTS.load(Ordering::SeqCst)
}

/// Asks whether `operation` may go on.
pub(crate) fn point(operation: Operation) -> io::Result<()> {
    match strike(operation) {
        None => Ok(()),
        Some(fault) => Err(fault.error()),
    }
}

impl Fault {
    /// What the operating system says of it, in Linux's numbers. Does not return from [`Fault::End`].
    pub(crate) fn error(self) -> io::Error {
        let number = match self {
            Self::End => std::process::abort(),
            Self::Full => 28,
            Self::ReadOnly => 30,
            Self::Once => 5,
        };
        io::Error::from_raw_os_error(number)
    }
}

/// The fault that strikes here, for writes, which end in the middle.
pub(crate) fn strike(operation: Operation) -> Option<Fault> {
    if !ARMED.load(Ordering::Relaxed) {
        return None;
    }
    let number = POINTS.fetch_add(1, Ordering::SeqCst);
    let (fault, at) = (*PLAN.lock().unwrap_or_else(PoisonError::into_inner))?;
    let strikes = match fault {
        Fault::End | Fault::Once => number == at,
        // A full disk still lets go of files.
        Fault::Full => number >= at && operation != Operation::Remove,
        Fault::ReadOnly => number >= at,
    };
    strikes.then_some(fault)
}
